"""What the custom kernels of a program compute: the compiler does not know, so it is said here.

A kernel is known by its name, and by the shapes it is called with where these are padded. With b
pictures, h heads, n queries, m keys and heads of width d, attention's one product of queries and
keys (or of weights and values) is p = 2 b h n m d FLOPs, and

    forward     2 p,  of which 2 p are the model's
    backward    5 p            4 p     (the weights are computed anew)

so that forward and backward together are the 6 p of attention without a kernel.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from emu_jax.errors import UserError
from emu_jax.planning.hlo import Shape


class Work(NamedTuple):
    """FLOPs that a call executes, those of them that are the model's (no recomputation), and the
    width of the heads: the matrix unit is 128 wide, and a narrower head leaves the rest idle."""

    flops: float
    model_flops: float
    head_width: int


def _attention(called: re.Match, operands: Sequence[Shape]) -> Work:
    """Of :mod:`emu_jax.parallel.flash`, whose first arrays are q [b, n, lanes] and k [b, m, lanes],
    each padded, and the queries perhaps a part of all."""
    lanes, heads, n, m, d = (int(called[key]) for key in ("lanes", "heads", "n", "m", "d"))
    (b, rows, width), (_, columns, _) = (dims for _, dims in operands[:2])
    product = 2.0 * b * rows * columns * width
    true = 2.0 * b * heads * m * d * n * rows / (-(-n // 128) * 128)
    executed, model = {"forward": (2, 2), "backward": (5, 4)}[called["direction"]]
    return Work(executed * product, model * true, lanes)


# Pattern of the kernel's name -> its work; the first that is found counts.
KERNELS: dict[str, Callable[[re.Match, Sequence[Shape]], Work]] = {
    r"attention_(?P<lanes>\d+)_of_(?P<heads>\d+)x(?P<n>\d+)x(?P<m>\d+)x(?P<d>\d+)"
    r"_(?P<direction>forward|backward)": _attention,
}


def work_of(name: str, operands: Sequence[Shape]) -> Work:
    """The work of one call of the kernel ``name`` with these arrays.

    Raises:
      UserError: the kernel is not in the table above.
    """
    for pattern, work in KERNELS.items():
        if found := re.search(pattern, name):
            return work(found, operands)
    raise UserError(f"Nobody has said what the kernel {name!r} computes: see planning/kernels.py.")
