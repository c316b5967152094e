"""Inception against torch-fidelity's network with random weights, resizing included."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fidelity import module, randomize

from emu_jax.evaluation.inception import FILES, Logits, Pooled
from emu_jax.evaluation.measuring import Batch
from emu_jax.nn.inception import SIZE
from emu_jax.nn.resizing import bilinear


def test_features_of_images(tmp_path):
    extractors = module("feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # its constructor downloads and loads weights
        patch.setattr(extractors, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        net = extractors.FeatureExtractorInceptionV3("any", ["2048", "logits_unbiased"])
    randomize(net)
    torch.save(net.state_dict(), tmp_path / FILES[0])
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    with torch.no_grad():
        expected = net(torch.tensor(images).permute(0, 3, 1, 2))
    batch = Batch(list(images), ["", ""])
    for kind, theirs in zip((Pooled, Logits), expected, strict=True):
        own = kind(str(tmp_path))(batch)  # the second reads what the first has computed
        scale = theirs.abs().max().item()
        np.testing.assert_allclose(own / scale, theirs.numpy() / scale, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 48), (400, 512)])
def test_resizing_is_that_of_the_references(size):
    tf1 = module("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    x = np.random.default_rng(1).random((1, *size, 3), np.float32) * 255
    torch_x = torch.tensor(x).permute(0, 3, 1, 2)
    as_torch = torch.nn.functional.interpolate(torch_x, (SIZE, SIZE), mode="bilinear")
    as_tensorflow = tf1(torch_x, (SIZE, SIZE), align_corners=False)
    for expected, half_pixel in ((as_torch, True), (as_tensorflow, False)):
        found = bilinear(jnp.asarray(x), (SIZE, SIZE), half_pixel=half_pixel)
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-2)
    assert (as_torch - as_tensorflow).abs().max() > 1
