"""The layouts of torch's own modules, there and back."""

import numpy as np
import pytest
import torch
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.torch_layout import to_torch


class Shape:
    def __init__(self, *shape: int):
        self.shape = shape


SHAPES = {
    "conv/kernel": Shape(3, 5, 2, 4),
    "conv/bias": Shape(4),
    "blocks/0/dense/kernel": Shape(4, 6),
    "norm/scale": Shape(6),
    "table/embedding": Shape(7, 6),
    "positional_embedding": Shape(1, 6),
}


def weights() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(2, 4, (3, 5)),
            "blocks": torch.nn.ModuleList(
                [torch.nn.ModuleDict({"dense": torch.nn.Linear(4, 6, bias=False)})]
            ),
            "norm": torch.nn.RMSNorm(6),
            "table": torch.nn.Embedding(7, 6),
        }
    )
    model.register_parameter("positional_embedding", torch.nn.Parameter(torch.randn(1, 6)))
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def test_names_and_axes():
    theirs = weights()
    ours = from_torch(theirs, SHAPES)
    assert list(ours) == list(SHAPES)
    assert ours["conv/kernel"][2, 4, 1, 3] == theirs["conv.weight"][3, 1, 2, 4]
    assert ours["blocks/0/dense/kernel"][3, 5] == theirs["blocks.0.dense.weight"][5, 3]
    np.testing.assert_array_equal(ours["table/embedding"], theirs["table.weight"])


def test_the_round_trip_is_exact():
    theirs = weights()
    back = to_torch(from_torch(theirs, SHAPES))
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert back[key].tobytes() == value.tobytes(), key
        assert back[key].flags.c_contiguous


def test_refuses_by_name():
    with pytest.raises(UserError, match=r"keys this network does not have: extra\.weight"):
        from_torch(weights() | {"extra.weight": np.zeros(1)}, SHAPES)
    lacking = weights()
    del lacking["conv.bias"]
    with pytest.raises(UserError, match=r"lack keys this network needs: conv\.bias"):
        from_torch(lacking, SHAPES)
    with pytest.raises(UserError, match=r"table\.weight has shape \(7, 5\).*\(7, 6\)"):
        from_torch(weights() | {"table.weight": np.zeros((7, 5))}, SHAPES)
