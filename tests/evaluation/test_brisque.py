"""BRISQUE against the packages brisque (C++ release) and piq (MATLAB release)."""

import numpy as np
import pytest
import torch
from fidelity import module
from scipy.ndimage import gaussian_filter

from emu_jax.errors import UserError
from emu_jax.evaluation.brisque import Table, brisque, features, load_table


def photographs():
    """Blurred noise over a gradient with some grain, of two shapes."""
    draws = np.random.default_rng(0)
    for shape, blur, grain in (((48, 64), 2, 3), ((48, 64), 0.7, 12), ((53, 41), 1, 1)):
        x = gaussian_filter(draws.normal(size=(*shape, 3)), (blur, blur, 0)) * 60 * (1 + blur)
        x += np.linspace(60, 190, shape[1])[:, None] + draws.normal(0, grain, (*shape, 3))
        yield np.clip(x, 0, 255).astype(np.uint8)


IMAGES = list(photographs())


def test_the_shipped_table_scores_as_the_package_brisque():
    package = module("brisque", "brisque")
    reference = package.BRISQUE.__new__(
        package.BRISQUE
    )  # its constructor loads the table by libsvm
    table = load_table()
    for image, score in zip(IMAGES, brisque(IMAGES), strict=True):
        gray = image / 255 @ np.array([0.2125, 0.7154, 0.0721])  # skimage's rgb2gray
        half = torch.nn.functional.interpolate(  # OpenCV's INTER_CUBIC
            torch.tensor(gray)[None, None], scale_factor=0.5, mode="bicubic"
        )
        want = [
            float(np.squeeze(x))
            for scale in (gray, half[0, 0].numpy())
            for x in reference.calculate_brisque_features(scale)
        ]
        np.testing.assert_allclose(features(image[None])[0], want, rtol=1e-4, atol=1e-6)
        reference.scale_params = {"min_": table.low, "max_": table.high}
        z = reference.scale_features(want)
        kernel = np.exp(-0.05 * np.sum((z - table.vectors) ** 2, axis=1))
        assert score == pytest.approx(kernel @ table.coefficients + 155.845, rel=1e-4, abs=1e-3)


def test_a_file_of_piq_scores_as_piq(tmp_path, monkeypatch):
    piq = module("brisque", "piq")
    draws = np.random.default_rng(1)
    weights = tuple(
        torch.tensor(x) for x in (draws.normal(0, 9, 50), draws.uniform(-1, 1, (50, 36)))
    )
    file = tmp_path / "brisque_svm_weights.pt"
    torch.save(weights, file)
    monkeypatch.setattr(piq, "load_url", lambda *_, **__: [x.clone() for x in weights])
    table = load_table(file)
    for image, score in zip(IMAGES, brisque(IMAGES, table), strict=True):
        x = torch.tensor(image).permute(2, 0, 1)[None].double()
        assert score == pytest.approx(piq.brisque(x, data_range=255).item(), rel=1e-4)
    torch.save((weights[0],), file)
    with pytest.raises(UserError, match=r"shapes \[\(50,\)\], not BRISQUE's"):
        load_table(file)


def test_flat_images_have_no_score():
    flat = np.full((16, 16, 3), 200, np.uint8)
    scores = brisque([flat, IMAGES[0]], load_table())
    assert np.isnan(scores[0]) and np.isfinite(scores[1])
    assert isinstance(load_table(), Table)
    with pytest.raises(UserError, match="8 pixels or more, not 4 x 16"):
        brisque([flat[:4]])
