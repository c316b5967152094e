"""MUSIQ against IQA-PyTorch's with random weights: patches, positions, scales and heads."""

import jax
import numpy as np
import pytest
import torch
from fidelity import module
from state_dicts import from_torch

from emu_jax.nn.functional import Network
from emu_jax.nn.musiq import Musiq


@pytest.mark.parametrize(("size", "classes"), [((50, 75), 1), ((40, 32), 10)])
def test_scores(size, classes):
    torch.manual_seed(0)
    sizes = dict(num_class=classes, hidden_size=24, mlp_dim=40, num_heads=3, num_layers=2)
    reference = module("archs.musiq_arch", "pyiqa").MUSIQ(**sizes, pretrained=False).eval()
    with torch.no_grad():
        reference.transformer_encoder.cls.normal_()
        for name, x in reference.named_parameters():
            if name.startswith("head") or "_emb" in name:
                x.mul_(20)
    network = Network(
        lambda rngs: Musiq(width=24, layers=2, heads=3, feed_forward=40, classes=classes, rngs=rngs)
    )
    params = from_torch(reference.state_dict(), network.shapes())
    images = np.random.default_rng(0).random((2, *size, 3)).astype(np.float32)
    images[1] *= np.linspace(0, 1, size[1])[:, None]  # as the reference reads them: in [0, 1]
    with torch.no_grad():
        want = reference(torch.tensor(images).permute(0, 3, 1, 2))[:, 0].numpy()
    found = jax.jit(network)(params, 2 * images - 1)
    assert abs(want[0] - want[1]) > 1e-3
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
