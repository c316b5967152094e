"""DINOv2 against transformers' model with random weights, at its own and at another size."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from state_dicts import from_torch
from transformers import Dinov2Config, Dinov2Model

from emu_jax.nn.dinov2 import Dinov2
from emu_jax.nn.functional import Network


@pytest.mark.parametrize("size", [(28, 28), (42, 21)])
def test_class_token(size, tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=28,
        patch_size=7,
        layerscale_value=0.5,
        initializer_range=0.3,
    )
    reference = Dinov2Model(config).eval()
    network = Network(
        lambda rngs: Dinov2(image_size=28, patch_size=7, width=24, layers=2, heads=3, rngs=rngs)
    )
    reference.save_pretrained(tmp_path)  # its keys are those of published files
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.pop("embeddings.mask_token") is not None  # of its training only
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x).permute(0, 3, 1, 2)).pooler_output
    found = network(from_torch(tensors, network.shapes()), jnp.asarray(x))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
