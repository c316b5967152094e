"""CLIP's ResNet against OpenAI's code, as IQA-PyTorch has it, with random weights."""

import jax
import numpy as np
import pytest
import torch
from fidelity import module, randomize, tensors
from state_dicts import from_torch

from emu_jax.nn.clip_resnet import ClipResNet
from emu_jax.nn.functional import Network


@pytest.mark.parametrize("size", [64, 96])
def test_embeddings(size):
    torch.manual_seed(0)
    reference = randomize(
        module("archs.clip_model", "pyiqa").ModifiedResNet((2, 1, 1, 1), 20, 8, 64, width=16)
    )
    with torch.no_grad():
        for name, x in reference.named_parameters():
            if name.endswith("bn3.weight"):
                x.add_(0.5)
    network = Network(
        lambda rngs: ClipResNet(
            depths=(2, 1, 1, 1), width=16, image_size=64, projection=20, rngs=rngs
        )
    )
    params = from_torch(tensors(reference), network.shapes())
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    for positions in [False] + [True] * (size == 64):
        with torch.no_grad():
            want = reference(torch.tensor(x).permute(0, 3, 1, 2), pos_embedding=positions)
        found = jax.jit(lambda p, x, where=positions: network(p, x, where))(params, x)
        scale = want.abs().max().item()
        np.testing.assert_allclose(found / scale, want.numpy() / scale, atol=1e-5)
