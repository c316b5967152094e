"""The tensors of one adapted module as two factors, B [out, rank] and A [rank, in, *window].

Every supported kind is a product B A, exactly, so that all of them are merged alike:

    LoRA    A = down, B = up. With a middle tensor (a convolution's CP decomposition) A is middle
            applied to down.
    LoHa    (w1a w1b) * (w2a w2b), elementwise: the rank is the product of both ranks, row (i, j) of
            A is w1b[i] * w2b[j], and column (i, j) of B is w1a[:, i] * w2a[:, j].
    LoKr    kron(w1, w2) with w = wa wb: B = kron(w1a, w2a) and A = kron(w1b, w2b).

LoHa and LoKr are those of LyCORIS (Yeh et al. 2023). Weight-decomposed adapters (DoRA, Liu et al.
2024) normalize the sum of base and product, and are refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from emu_jax.errors import UserError

# Ending of a tensor's name -> what it is called here. Older and other spellings come first.
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    **{f".hada_{x}": f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{x}": f"lokr_{x}" for x in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
# Ending -> the kind of adapter, for the message.
REFUSED = {
    ".dora_scale": "a DoRA, which normalizes the adapted weights",
    ".lora_magnitude_vector": "a DoRA, which normalizes the adapted weights",
    ".lora_magnitude_vector.weight": "a DoRA, which normalizes the adapted weights",
    ".lora_B.bias": "a LoRA with a bias",
    ".lora_up.bias": "a LoRA with a bias",
    ".diff": "a change of full rank",
    ".diff_b": "a change of a bias",
    ".w_norm": "a change of a norm",
    ".b_norm": "a change of a norm",
    ".oft_blocks": "an OFT",
    ".oft_diag": "an OFT",
    ".on_input": "an IA3",
}


Size = tuple[int, int]  # (outputs, inputs times window)


class Factors(NamedTuple):
    """``rank`` divides alpha; None: there is no scale. ``alpha`` None: the settings say it."""

    down: np.ndarray
    up: np.ndarray
    rank: int | None
    alpha: float | None


def factors(
    module: str, found: Mapping[str, np.ndarray], kernel: tuple[int, ...], file: str
) -> Factors:
    """The factors of ``module``; ``found``: its tensors by the names of ``ENDINGS``, in torch's
    layout. ``kernel``: the shape [*window, in, out] of what they change, which bounds the memory
    that a product of small tensors may take.

    Raises:
      UserError: one is missing or of another shape.
    """
    size = kernel[-1], math.prod(kernel[:-1])
    found = {name: x if name == "alpha" else x.astype(np.float32) for name, x in found.items()}
    alpha = found.get("alpha")
    if alpha is not None and alpha.size != 1:
        raise UserError(f"{file}: {module}.alpha is {list(alpha.shape)}, not one number.")
    make = _lora
    if any(name.startswith("hada_") for name in found):
        make = _loha
    elif any(name.startswith("lokr_") for name in found):
        make = _lokr
    try:
        down, up, rank = make(found, size)
    except KeyError as error:
        raise UserError(f"{file} lacks the factor {error.args[0]} of {module}.") from None
    except ValueError:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in sorted(found.items()))
        raise UserError(f"{file}: the factors of {module} do not fit: {shapes}.") from None
    return Factors(down, up, rank, None if alpha is None else float(alpha.reshape(())))


def _lora(found: Mapping[str, np.ndarray], size: Size) -> tuple[np.ndarray, np.ndarray, int | None]:
    down, up = found["down"], found["up"]
    if down.ndim not in (2, 4) or down.ndim != up.ndim or not down.size:
        raise ValueError
    if "mid" in found:
        mid = found["mid"]
        _require(down.shape[2:] == (1, 1) and down.shape[1] * math.prod(mid.shape[2:]) == size[1])
        down = np.einsum("rs...,si->ri...", mid, down[:, :, 0, 0])
    up = _matrix(up)
    _require(up.shape[1] == down.shape[0])
    return down, up, down.shape[0]


def _loha(found: Mapping[str, np.ndarray], size: Size) -> tuple[np.ndarray, np.ndarray, int | None]:
    rows, columns = [], []
    for i in (1, 2):
        a, b = found[f"hada_w{i}_a"], found[f"hada_w{i}_b"]
        _require(a.ndim == b.ndim == 2 and a.size > 0 and b.size > 0)
        if f"hada_t{i}" in found:  # a convolution's: both sides lie the other way
            rows.append(np.einsum("ij...,jp->ip...", found[f"hada_t{i}"], b))
            columns.append(a.T)
        else:
            rows.append(b)
            columns.append(a)
        _require(columns[-1].shape[1] == rows[-1].shape[0])
        _require((columns[-1].shape[0], math.prod(rows[-1].shape[1:])) == size)
    _require(rows[0].shape[1:] == rows[1].shape[1:])
    rank = found["hada_w1_b"].shape[0]
    if len(rows[0]) * len(rows[1]) > size[0]:  # the whole product is smaller
        down = np.tensordot(columns[0], rows[0], 1) * np.tensordot(columns[1], rows[1], 1)
        return down, np.eye(size[0], dtype=down.dtype), rank
    down = (rows[0][:, None] * rows[1][None]).reshape(-1, *rows[0].shape[1:])
    up = (columns[0][:, :, None] * columns[1][:, None]).reshape(columns[0].shape[0], -1)
    return down, up, rank


def _lokr(found: Mapping[str, np.ndarray], size: Size) -> tuple[np.ndarray, np.ndarray, int | None]:
    pairs, rank = [], None
    for i in (1, 2):
        if f"lokr_w{i}" in found:
            b = found[f"lokr_w{i}"]
            a = np.eye(b.shape[0], dtype=b.dtype)
        else:
            a, b = found[f"lokr_w{i}_a"], found[f"lokr_w{i}_b"]
            rank = b.shape[0]
            if f"lokr_t{i}" in found:
                b = np.einsum("ij...,jp->ip...", found[f"lokr_t{i}"], b)
                a = a.T
        _require(a.ndim == 2 and b.ndim >= 2 and a.size > 0 and b.size > 0)
        _require(a.shape[1] == b.shape[0])
        if a.shape[1] > a.shape[0]:  # the whole product is smaller
            a, b = np.eye(a.shape[0], dtype=a.dtype), np.tensordot(a, b, 1)
        pairs.append((a, b))
    (a1, b1), (a2, b2) = pairs
    _require(b1.ndim == 2)
    inputs = math.prod(b1.shape[1:]) * math.prod(b2.shape[1:])
    _require((len(a1) * len(a2), inputs) == size)
    down = np.einsum("ri,sj...->rsij...", b1, b2)
    down = down.reshape(b1.shape[0] * b2.shape[0], b1.shape[1] * b2.shape[1], *b2.shape[2:])
    return down, np.kron(a1, a2), rank


def fitted(found: Factors, wanted: tuple[int, ...]) -> Factors | None:
    """``found`` for a kernel of the shape ``wanted`` [*window, in, out]; None: of another size. A
    window of 1 x 1 may be left out, and inputs and window may be one axis (LyCORIS)."""
    *window, into, out = wanted
    down = found.down
    if down.ndim == 2 and window and down.shape[1] == into * int(np.prod(window)):
        down = down.reshape(-1, into, *window)
    elif down.ndim == 4 and not window and down.shape[2:] == (1, 1):
        down = down[:, :, 0, 0]
    if down.shape[1:] != (into, *window) or found.up.shape[0] != out:
        return None
    up = found.up.reshape(*found.up.shape, *(1 for _ in window))
    return found._replace(down=down, up=up)


def _matrix(up: np.ndarray) -> np.ndarray:
    _require(up.shape[2:] in ((), (1, 1)))
    return up.reshape(up.shape[:2])


def _require(fits: Any) -> None:
    if not fits:
        raise ValueError
