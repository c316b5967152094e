"""Numbers as the tensors of GGUF files store them, and their values in fp32.

A quantized row is a sequence of blocks of equal size. d, m: fp16 numbers of the block; q: an
unsigned number of 4 bits (6 for Q6_K), its low half-bytes first; s, n: unsigned numbers of 6 bits
(signed, of 8 bits, for Q6_K), one for 32 values (16 for Q6_K).

    name  values  bytes  a value is                        bytes in their order
    Q8_0      32     34  d q, q signed, 8 bits             d, q
    Q4_0      32     18  d (q - 8)                         d, q
    Q4_1      32     20  d q + m                           d, m, q
    Q4_K     256    144  d s q - m n                       d, m, s and n, q
    Q6_K     256    210  d s (q - 32)                      low 4 bits of q, high 2 bits, s, d

F32, F16 and BF16 are single numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32, UInt8

Blocks = UInt8[np.ndarray, "n bytes"]
Values = Float32[np.ndarray, "n values"]


def _numbers(dtype: type) -> Callable[[Blocks], Values]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _half(blocks: Blocks, start: int) -> Values:
    """The fp16 number at byte ``start`` of every block."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _bits(packed: UInt8[np.ndarray, "n bytes"], group: int, width: int) -> np.ndarray:
    """[n, parts, 8 / width, group]: numbers of ``width`` bits, the low ones of ``group`` bytes
    first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    parts = packed.reshape(len(packed), -1, 1, group) >> shifts
    return parts & np.uint8(2**width - 1)


def _q8_0(blocks: Blocks) -> Values:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_0(blocks: Blocks) -> Values:
    q = _bits(blocks[:, 2:], 16, 4).reshape(-1, 32)
    return _half(blocks, 0) * (q.astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Values:
    q = _bits(blocks[:, 4:], 16, 4).reshape(-1, 32)
    return _half(blocks, 0) * q.astype(np.float32) + _half(blocks, 2)


def _q4_k(blocks: Blocks) -> Values:
    # Eight s and eight n in 12 bytes: 6 bits each of the first four, and of the last four, in the
    # third group of four bytes, the low 4 bits, and the high 2 above the first ones' 6.
    first, second, third = np.split(blocks[:, 4:16], 3, axis=1)
    scales = np.concatenate([first & 63, (third & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 2 & 48)], axis=1)
    q = _bits(blocks[:, 16:], 32, 4).reshape(-1, 8, 32).astype(np.float32)
    scale = (_half(blocks, 0) * scales.astype(np.float32))[..., None]
    minimum = (_half(blocks, 2) * minima.astype(np.float32))[..., None]
    return (scale * q - minimum).reshape(-1, 256)


def _q6_k(blocks: Blocks) -> Values:
    low = _bits(blocks[:, :128], 64, 4).reshape(-1, 8, 32)
    high = _bits(blocks[:, 128:192], 32, 2).reshape(-1, 8, 32)
    q = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return ((_half(blocks, 208) * scales)[..., None] * q).reshape(-1, 256)


class Kind(NamedTuple):
    """How a tensor is stored: the numbers of values and of bytes in a block."""

    name: str
    values: int
    bytes: int
    decode: Callable[[Blocks], Values]


# By the number that GGUF files have for it.
KINDS = {
    0: Kind("F32", 1, 4, _numbers(np.float32)),
    1: Kind("F16", 1, 2, _numbers(np.float16)),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    12: Kind("Q4_K", 256, 144, _q4_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _numbers(ml_dtypes.bfloat16)),
}


def dequantize(data: bytes, kind: Kind) -> Float32[np.ndarray, "n"]:
    """The values in ``data``, a whole number of blocks."""
    return kind.decode(np.frombuffer(data, np.uint8).reshape(-1, kind.bytes)).reshape(-1)
