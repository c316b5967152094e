"""DeepLab-V3, and with it a dilated ResNet, and a plain one, against torchvision's."""

import jax.numpy as jnp
import numpy as np
import torch
import torchvision_models
from fidelity import randomize, tensors
from state_dicts import from_torch

from emu_jax.nn.deeplab import DeepLab
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import ResNet


def images(size):
    """Images in [-1, 1], and normalized by ImageNet's mean and standard deviation for torch."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    y = ((x + 1) / 2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return jnp.asarray(x), torch.tensor(y, dtype=torch.float32).permute(0, 3, 1, 2)


def close(found, expected):
    scale = expected.abs().max().item()
    np.testing.assert_allclose(found / scale, expected.numpy() / scale, atol=1e-5)


def test_the_stages_of_a_resnet():
    torch.manual_seed(0)
    reference = randomize(torchvision_models.models().resnet50(weights=None))
    own = Network(lambda rngs: ResNet(rngs=rngs))
    weights = {k: v for k, v in tensors(reference).items() if not k.startswith("fc.")}
    x, normalized = images((64, 96))
    stages = [getattr(reference, f"layer{i}") for i in range(1, 5)]
    with torch.no_grad():
        y = reference.relu(reference.bn1(reference.conv1(normalized)))
        y, expected = reference.maxpool(y), []
        for stage in stages:
            expected.append(y := stage(y))
    found = own(from_torch(weights, own.shapes()), x)
    for one, other in zip(found, expected, strict=True):
        close(one, other.permute(0, 2, 3, 1))


def test_logits_of_pixels():
    torch.manual_seed(0)
    make = torchvision_models.models().segmentation.deeplabv3_resnet50
    reference = randomize(make(weights=None, weights_backbone=None, num_classes=5))
    own = Network(lambda rngs: DeepLab(5, rngs=rngs))
    x, normalized = images((48, 64))
    with torch.no_grad():
        expected = reference(normalized)["out"]
    found = own(from_torch(tensors(reference), own.shapes()), x)
    close(found, expected.permute(0, 2, 3, 1))
