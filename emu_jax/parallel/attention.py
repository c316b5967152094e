"""The attention function ``attend(q, k, v, mask)`` of networks: XLA, or a kernel of the device.

A kernel never writes the n x m weights to memory. The choice depends only on the configured kind,
the devices and the shapes:

    xla      always XLA's own operations
    flash    on TPUs, the Pallas kernels of this package
    cudnn    on NVIDIA GPUs, the kernels of cuDNN; 16 bits only
    auto     flash on TPUs, cudnn on GPUs of compute capability 8 and later, xla elsewhere

XLA computes, whatever the kind, where there are fewer than ``LONG`` queries (the coarse stages: a
kernel gains little) and where the number of devices does not divide the rows (one image on eight
chips). If a kernel does not support a longer call, XLA computes it under ``auto``, and it is an
error if the kernel was selected by name.

A kernel is compared with XLA's form before its first use (:mod:`emu_jax.parallel.checks`); one that
fails is replaced by it, or is an error if it was selected by name. cuDNN is compared a second time
over a text, whose tokens are padded for it, by the same rule: XLA replaces it in these calls only.

On several devices a kernel runs inside ``shard_map``: each device has its own rows and all heads,
or some queries of a row and all its keys where several devices share a row.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.parallel.checks import usable
from emu_jax.parallel.flash import flash
from emu_jax.parallel.sharding import division

KINDS = ("auto", "xla", "flash", "cudnn")
# From this number of tokens on, moving the weights through memory costs more than the arithmetic.
LONG = 1024
# cuDNN takes keys in multiples of this; a text is padded.
_PADDED = 8
# Keys of the second comparison: CLIP's tokens.
_TEXT = 77
# Tokens of the comparison before the first use: a call that kernels are used for.
_COMPARED = LONG
# With wider heads the tiles of the flash kernel do not fit into the memory of a core.
_WIDEST = 512


def make_attend(kind: str, mesh: Mesh, strict: bool = False) -> Attend:
    """The attention function of ``kind`` for the devices of the mesh. ``strict``: a kernel that
    fails its check is an error for ``auto`` too.

    Raises:
      UserError: an unknown kind, or a kernel that these devices do not have or that fails.
    """
    if kind not in KINDS:
        raise UserError(f"attention is {kind!r}; use one of {', '.join(KINDS)}.")
    device = mesh.devices.flat[0]
    has = {"tpu": "flash", "gpu": "cudnn", "cuda": "cudnn"}.get(device.platform, "xla")
    if has == "cudnn" and float(device.compute_capability) < 8:
        has = "xla"
    if kind not in ("auto", "xla", has):
        raise UserError(
            f"attention={kind} does not run on {device.device_kind}; use attention=auto, which is "
            f"{has} there."
        )
    chosen = has if kind == "auto" else kind
    if chosen == "xla":
        return attend
    named = kind != "auto"
    change = "attention=xla" if named else "attention=xla or deterministic=False" if strict else ""
    if not usable(f"attention={chosen}", mesh, *_compared(chosen), change):
        return attend
    texts = chosen != "cudnn" or usable(
        "attention=cudnn over texts", mesh, *_compared(chosen, _TEXT), change
    )
    return partial(_attend, chosen, named, 0 if texts else LONG, mesh)


def _compared(
    kind: str, count: int = 0
) -> tuple[Callable[..., Array], Callable[..., Array], list[np.ndarray]]:
    """A kernel and XLA's form as functions of q, k and v, and values of these: two rows with
    ``count`` keys (0: as many as queries), of which the second attends to half.
    """
    kernel, count = _kernels()[kind], count or _COMPARED
    keys = np.arange(count) < np.array([[count], [count // 2]])
    chance = np.random.default_rng(0)
    return (
        lambda q, k, v: kernel(q, k, v, jnp.asarray(keys)),
        lambda q, k, v: attend(q, k, v, jnp.asarray(keys)[:, None, None]),
        [
            chance.normal(size=(2, tokens, 2, 64)).astype(np.float32)
            for tokens in (_COMPARED, count, count)
        ],
    )


def _kernels() -> dict[str, Callable[..., Array]]:
    return {"flash": flash, "cudnn": cudnn}


def unsupported(
    kind: str,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    mask: Bool[Array, "#b #h #n m"] | None,
) -> str:
    """What of these arrays the kernel does not support, or "" if it supports them."""
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "masks that differ between heads or queries"
    if kind == "flash" and q.shape[-1] > _WIDEST:
        return f"heads of width {q.shape[-1]}, over {_WIDEST}"
    if kind == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"{q.dtype}, only 16 bits"
        if q.shape[-1] % 8 or q.shape[-1] > 128:
            return f"heads of width {q.shape[-1]}, only multiples of 8 up to 128"
        if q.shape[1] % 2 and (mask is not None or k.shape[1] % _PADDED):
            return "masks over an odd number of queries"
    return ""


def _attend(
    kind: str,
    named: bool,
    shortest: int,
    mesh: Mesh,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    mask: Bool[Array, "#b #h #n m"] | None = None,
) -> Float[Array, "b n h d"]:
    if q.shape[1] < LONG or k.shape[1] < shortest or division(q.shape, mesh) is None:
        return attend(q, k, v, mask)
    reason = unsupported(kind, q, k, mask)
    if reason and named:
        raise UserError(f"attention={kind} does not support {reason}; use attention=auto or xla.")
    if reason:
        return attend(q, k, v, mask)
    keys = None if mask is None else jnp.broadcast_to(mask[:, 0, 0], k.shape[:2])
    return by_rows(_kernels()[kind], mesh)(q, k, v, keys)


def by_rows(kernel: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """``kernel(q, k, v, keys)``, with each device computing its own rows or queries."""
    if mesh.size == 1:
        return kernel

    def sharded(
        q: Float[Array, "b n h d"],
        k: Float[Array, "b m h d"],
        v: Float[Array, "b m h d"],
        keys: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b n h d"]:
        arrays = (q, k, v) if keys is None else (q, k, v, keys)
        queries = division(q.shape, mesh)
        assert queries is not None, f"{mesh.size} devices do not divide {q.shape[:2]}"
        whole = P(queries[0])
        # Unchecked: Pallas does not declare how its results vary between devices.
        mapped = jax.shard_map(
            lambda *arrays: kernel(*arrays, *(None,) * (4 - len(arrays))),
            mesh=mesh,
            in_specs=(queries, *(whole,) * (len(arrays) - 1)),
            out_specs=queries,
            check_vma=False,
        )
        return mapped(*arrays)

    return sharded


def cudnn(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Bool[Array, "b m"] | None,
) -> Float[Array, "b n h d"]:
    """The fused attention of cuDNN; ``keys`` is true for the keys that are attended to."""
    more = -k.shape[1] % _PADDED
    if more:
        keys = jnp.ones(k.shape[:2], bool) if keys is None else keys
        k, v, keys = (
            jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) for x in (k, v, keys)
        )
    mask = None
    if keys is not None:
        mask = jnp.broadcast_to(keys[:, None, None], (len(q), 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
