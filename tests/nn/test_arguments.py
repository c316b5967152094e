"""Which values fit a declared type."""

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from flax import nnx

from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments


class Net(nnx.Module):
    def __init__(
        self,
        *,
        width: int,
        scale: float = 1.0,
        name: str = "",
        flag: bool = False,
        heads: int | Sequence[int] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        kind: Literal["a", "b"] = "a",
        act: Callable | None = None,
        rngs: nnx.Rngs,
    ):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        dict(width=3, scale=2, name="x", flag=True, heads=None, bounds=[0, 1.5]),
        dict(heads=4),
        dict(heads=[4, 8]),
        dict(heads=(4, 8)),
        dict(kind="c", act=len, unknown="anything"),  # others' business
    ],
)
def test_what_fits(arguments):
    check_arguments(Net, arguments, "net")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(width="3"), r"net\.width is '3'; it must be a whole number"),
        (dict(width=3.0), "a whole number"),
        (dict(width=True), "a whole number"),
        (dict(width=None), "a whole number"),
        (dict(scale="1"), "a number"),
        (dict(scale=False), "a number"),
        (dict(flag=1), "true or false"),
        (dict(name=["x"]), "a string"),
        (dict(heads=[4, "8"]), "a whole number or a list, each entry a whole number or null"),
        (dict(heads={"a": 1}), "a whole number or a list"),
        (dict(bounds=[0]), r"2 entries \(a number, a number\)"),
        (dict(bounds=[0, "1"]), "2 entries"),
    ],
)
def test_what_does_not(arguments, words):
    with pytest.raises(UserError, match=words):
        check_arguments(Net, arguments, "net")
