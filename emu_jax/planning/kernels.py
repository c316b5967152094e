"""The FLOPs of the custom kernels of a program, which the compiler does not know.

A kernel is identified by its name; the shapes of its operands give the padding. With b images, h
heads, n queries, m keys and head width d, one matrix product of attention (of queries and keys, or
of weights and values) has p = 2 b h n m d FLOPs. The kernels have

    forward     2 p executed,  2 p of the model
    backward    5 p executed,  4 p of the model (the weights are recomputed)

so that the model FLOPs of forward and backward are the 6 p of attention without a kernel.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from emu_jax.errors import UserError
from emu_jax.planning.hlo import Shape


class Work(NamedTuple):
    """The FLOPs that a call executes, the model FLOPs among them (without recomputation), and the
    head width: the matrix unit is 128 wide, and a narrower head leaves a part of it idle.
    """

    flops: float
    model_flops: float
    head_width: int


def _attention(called: re.Match, operands: Sequence[Shape]) -> Work:
    """The work of :mod:`emu_jax.parallel.flash`. Its first operands are q [b, n, lanes] and
    k [b, m, lanes]; both are padded, and the queries may be only a part of all queries.
    """
    lanes, heads, n, m, d = (int(called[key]) for key in ("lanes", "heads", "n", "m", "d"))
    (b, rows, width), (_, columns, _) = (dims for _, dims in operands[:2])
    padded = 2.0 * b * rows * columns * width
    exact = 2.0 * b * heads * m * d * n * rows / (-(-n // 128) * 128)
    executed, model = {"forward": (2, 2), "backward": (5, 4)}[called["direction"]]
    return Work(executed * padded, model * exact, lanes)


# Pattern of a kernel's name -> its work; the first match counts.
KERNELS: dict[str, Callable[[re.Match, Sequence[Shape]], Work]] = {
    r"attention_(?P<lanes>\d+)_of_(?P<heads>\d+)x(?P<n>\d+)x(?P<m>\d+)x(?P<d>\d+)"
    r"_(?P<direction>forward|backward)": _attention,
}


def work_of(name: str, operands: Sequence[Shape]) -> Work:
    """The work of one call of the kernel ``name`` with these operands.

    Raises:
      UserError: the kernel is not in the table above.
    """
    for pattern, work in KERNELS.items():
        if found := re.search(pattern, name):
            return work(found, operands)
    raise UserError(
        f"The FLOPs of the kernel {name!r} are unknown; add it to KERNELS in "
        "emu_jax/planning/kernels.py."
    )
