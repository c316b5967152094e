"""MUSIQ against IQA-PyTorch's with random weights: patches, positions, scales and heads."""

import numpy as np
import pytest
import torch
from fidelity import module

from emu_jax.evaluation import quality_metrics
from emu_jax.evaluation.measuring import Batch


@pytest.mark.parametrize(("size", "classes"), [((50, 75), 1), ((40, 32), 10)])
def test_scores(size, classes, tmp_path):
    torch.manual_seed(0)
    sizes = dict(num_class=classes, hidden_size=64, mlp_dim=40, num_heads=1, num_layers=2)
    reference = module("archs.musiq_arch", "pyiqa").MUSIQ(**sizes, pretrained=False).eval()
    with torch.no_grad():
        reference.transformer_encoder.cls.normal_()
        for name, x in reference.named_parameters():
            if name.startswith("head") or "_emb" in name:
                x.mul_(20)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    images[1] //= 3
    with torch.no_grad():
        want = reference(torch.tensor(images).permute(0, 3, 1, 2) / 255)[:, 0].numpy()
    torch.save(reference.state_dict(), tmp_path / quality_metrics.MUSIQ[0])
    found = quality_metrics.Musiq(str(tmp_path))(Batch(list(images), ["", ""]))
    assert abs(want[0] - want[1]) > 1e-3
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
