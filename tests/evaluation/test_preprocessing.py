"""Resizing before published networks, against torchvision on the same pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision_models import part

from emu_jax.evaluation import preprocessing

SIDE = 24


@pytest.fixture(scope="module")
def transforms():
    return part("transforms")


def images():
    draws = np.random.default_rng(0)
    return [
        np.asarray(
            Image.fromarray(draws.integers(0, 256, (9, 8, 3), np.uint8)).resize((w, h))
        ).copy()
        for h, w in ((40, 61), (61, 40), (24, 24), (10, 13), (24, 50))
    ]


def test_cropped_and_squashed_are_those_of_clip_and_dgm_eval(transforms):
    bicubic = transforms.InterpolationMode.BICUBIC
    clip = transforms.Compose([transforms.Resize(SIDE, bicubic), transforms.CenterCrop(SIDE)])
    dgm = transforms.Resize((SIDE, SIDE), bicubic)
    for mine, theirs in ((preprocessing.cropped, clip), (preprocessing.squashed, dgm)):
        want = [np.asarray(theirs(Image.fromarray(image))) for image in images()]
        np.testing.assert_array_equal(mine(images(), SIDE), np.stack(want))


def test_padded_is_that_of_hps(transforms):
    functional = transforms.functional
    for image, found in zip(images(), preprocessing.padded(images(), SIDE), strict=True):
        x = torch.tensor(image).permute(2, 0, 1) / 255
        scale = SIDE / max(image.shape[:2])
        if scale != 1:
            size = [round(n * scale) for n in image.shape[:2]]
            x = functional.resize(x, size, transforms.InterpolationMode.BICUBIC, antialias=True)
        h, w = (SIDE - n for n in x.shape[1:])
        x = functional.pad(x, [w // 2, h // 2, w - w // 2, h - h // 2])
        np.testing.assert_allclose(found / 255, x.permute(1, 2, 0).numpy(), atol=1e-4)


def test_centered_is_that_of_cmmd():
    for image, found in zip(images(), preprocessing.centered(images(), SIDE), strict=True):
        h, w, _ = image.shape
        short, left, top = min(h, w), (w - min(h, w)) // 2, (h - min(h, w)) // 2
        square = Image.fromarray(image).crop((left, top, left + short, top + short))
        want = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(found, want)


def test_values_are_normalized_per_channel(transforms):
    squares = preprocessing.squashed(images(), SIDE)
    x = torch.tensor(squares).permute(0, 3, 1, 2) / 255
    want = transforms.functional.normalize(
        x, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD
    ).permute(0, 2, 3, 1)
    found = preprocessing.normalized(squares, preprocessing.CLIP_MEAN, preprocessing.CLIP_STD)
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)
