"""The ``attend(q, k, v, mask)`` that networks are handed: plain, or by the kernel a device has.

A kernel never writes the n x m weights to memory. Which one runs is a rule of the configured kind,
the devices and the shapes, and of nothing else:

    xla      always XLA's own operations
    splash   on TPUs, a Pallas kernel
    cudnn    on NVIDIA GPUs, cuDNN's; in 16 bits only
    auto     splash on TPUs, cudnn on GPUs of compute capability 8 and later, xla elsewhere

Where queries or keys are fewer than ``LONG`` tokens (a text, the coarse stages), or the devices do
not divide the rows (one picture on eight chips), there is little to gain or no way to divide, and
XLA computes whatever the kind. A longer call that the kernel cannot take goes to XLA under
``auto`` and is refused where the kernel was asked for by name.

On several devices a kernel runs inside ``shard_map``, each device with its own rows and all heads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.stack import ATTENTION
from emu_jax.parallel.mesh import AXES

KINDS = ("auto", "xla", "splash", "cudnn")
# Tokens from which on the weights' way through memory costs more than the arithmetic.
LONG = 1024
# The splash kernel works on tiles of this many tokens, at least of the last.
_TILES = (1024, 512, 256, 128)
# Its accumulators of one tile must fit in a core's own memory.
_WIDEST = 256


def make_attend(kind: str, mesh: Mesh) -> Attend:
    """The attention called ``kind`` on the mesh's devices.

    Raises:
      UserError: no such kind, or these devices have no such kernel.
    """
    if kind not in KINDS:
        raise UserError(f"attention is one of {', '.join(KINDS)}, not {kind!r}.")
    device = mesh.devices.flat[0]
    has = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(device.platform, "xla")
    if has == "cudnn" and float(device.compute_capability) < 8:
        has = "xla"
    if kind not in ("auto", "xla", has):
        raise UserError(
            f"attention={kind} does not run on {device.device_kind}: set attention=auto, which is "
            f"{has} there."
        )
    chosen = has if kind == "auto" else kind
    if chosen == "xla":
        return attend
    return partial(_attend, chosen, kind != "auto", mesh)


def objection(kind: str, q: Array, k: Array, mask: Array | None) -> str:
    """Why the kernel cannot take these arrays, or "" where it can."""
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "a mask that differs between heads or queries"
    if kind == "splash" and q.shape[-1] > _WIDEST:
        return f"heads of {q.shape[-1]}, over {_WIDEST}"
    if kind == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"{q.dtype}, not 16 bits"
        if q.shape[-1] % 8 or q.shape[-1] > 128:
            return f"heads of {q.shape[-1]}, no multiple of 8 up to 128"
        if mask is not None and (q.shape[1] % 2 or k.shape[1] % 2):
            return "a mask over an odd number of tokens"
    return ""


def _attend(
    kind: str,
    named: bool,
    mesh: Mesh,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    mask: Bool[Array, "#b #h #n m"] | None = None,
) -> Float[Array, "b n h d"]:
    if min(q.shape[1], k.shape[1]) < LONG or q.shape[0] % mesh.size:
        return attend(q, k, v, mask)
    why = objection(kind, q, k, mask)
    if why and named:
        raise UserError(f"attention={kind} does not take {why}: set attention=auto or xla.")
    if why:
        return attend(q, k, v, mask)
    keys = None if mask is None else jnp.broadcast_to(mask[:, 0, 0], k.shape[:2])
    kernel = {"splash": splash, "cudnn": cudnn}[kind]
    return by_rows(kernel, mesh)(q, k, v, keys)


def by_rows(kernel: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """``kernel(q, k, v, keys)`` on every device's own rows."""
    if mesh.size == 1:
        return kernel
    rows = P(AXES)

    def spread(q: Array, k: Array, v: Array, keys: Array | None) -> Array:
        given = (q, k, v) if keys is None else (q, k, v, keys)
        # Pallas says nothing of how its results vary between devices: unchecked.
        inside = jax.shard_map(
            lambda *given: kernel(*given, *(None,) * (4 - len(given))),
            mesh=mesh,
            in_specs=(rows,) * len(given),
            out_specs=rows,
            check_vma=False,
        )
        return inside(*given)

    return spread


def cudnn(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Bool[Array, "b m"] | None,
) -> Float[Array, "b n h d"]:
    """cuDNN's fused attention; ``keys`` says which keys may be seen."""
    mask = None
    if keys is not None:
        mask = jnp.broadcast_to(keys[:, None, None], (len(q), 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def splash(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Bool[Array, "b m"] | None,
    *,
    interpret: bool = False,
) -> Float[Array, "b n h d"]:
    """The splash kernel; ``keys`` says which keys may be seen, at least one a row.

    Tokens are padded to whole tiles. Keys that are masked, and those that pad, are of another
    segment than the queries. ``interpret`` runs it without a TPU, slowly.
    """
    n = q.shape[1]
    if k.shape[1] % _TILES[-1] and keys is None:
        keys = jnp.ones(k.shape[:2], bool)
    q, k, v = (_padded(x.swapaxes(1, 2), 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    segments = None
    if keys is not None:
        seen = jnp.ones((len(q), q.shape[2]), jnp.int32)
        segments = splash_kernel.SegmentIds(q=seen, kv=_padded(keys, 1).astype(jnp.int32))
    kernel = _kernel(q.shape[1], q.shape[2], k.shape[2], interpret)
    with jax.named_scope(f"{_passes(k.shape[2])}_pass"):  # by which planning knows its work
        return jax.vmap(kernel)(q, k, v, segments)[:, :, :n].swapaxes(1, 2)


def _padded(x: Array, axis: int) -> Array:
    """With zeros behind, up to whole tiles."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % _TILES[-1])
    return jnp.pad(x, widths)


def _passes(m: int) -> str:
    """Of the backward kernels: where one tile holds all keys, the queries' gradient needs no sum
    over tiles, and one pass gives all three."""
    return "one" if m in _TILES else "two"


def _kernel(heads: int, n: int, m: int, interpret: bool) -> Callable[..., Any]:
    bq, bk = (next(tile for tile in _TILES if size % tile == 0) for size in (n, m))
    one_pass = _passes(m) == "one"
    # Tokens last: heads of 64 would fill half of a register's 128 lanes.
    layout = splash_kernel.QKVLayout.SEQ_MINOR
    sizes = splash_kernel.BlockSizes(
        block_q=bq,
        block_kv=bk,
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_q_dq=None if one_pass else bq,
        block_kv_dq=None if one_pass else bk,
        use_fused_bwd_kernel=one_pass,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    every = splash_mask.MultiHeadMask([splash_mask.FullMask((n, m))] * heads)
    return splash_kernel.make_splash_mha(
        every,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
