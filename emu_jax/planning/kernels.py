"""What the custom kernels of a program compute: the compiler does not know, so it is said here.

A kernel is known by its name and by the shapes it is called with. With b pictures, h heads, n
queries, m keys and heads of width d, attention's one product of queries and keys (or of weights and
values) is p = 2 b h n m d FLOPs, and

    forward               2 p,  of which 2 p are the model's
    backward, queries     3 p            p     (the weights are computed anew)
    backward, keys        4 p          3 p
    backward, in one      5 p          4 p

so that forward and backward together are the 6 p of attention without a kernel.
"""

import math
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


def _attention(executed: int, model: int) -> Callable[[Sequence[Shape]], Work]:
    """Of a kernel whose first floating-point arrays are q [b, h, d, n] and k [b, h, d, m], with or
    without the b."""

    def work(operands: Sequence[Shape]) -> Work:
        q, k, *_ = (dims for dtype, dims in operands if dtype.startswith(("f", "bf")))
        product = 2.0 * math.prod(q) * k[-1]
        return Work(executed * product, model * product, q[-2])

    return work


# Pattern of the kernel's name -> its work; the first that is found counts.
KERNELS: dict[str, Callable[[Sequence[Shape]], Work]] = {
    r"one_pass.*splash\w*_dkv": _attention(5, 4),
    r"splash\w*_dq": _attention(3, 1),
    r"splash\w*_dkv": _attention(4, 3),
    r"splash\w*": _attention(2, 2),
}


def work_of(name: str, operands: Sequence[Shape]) -> Work:
    """The work of one call of the kernel ``name`` with these arrays.

    Raises:
      UserError: the kernel is not in the table above.
    """
    for pattern, work in KERNELS.items():
        if re.search(pattern, name):
            return work(operands)
    raise UserError(f"Nobody has said what the kernel {name!r} computes: see planning/kernels.py.")
