"""The ``attend(q, k, v, mask)`` that networks are handed: plain, or by the kernel a device has.

A kernel never writes the n x m weights to memory. Which one runs is a rule of the configured kind,
the devices and the shapes, and of nothing else:

    xla      always XLA's own operations
    flash    on TPUs, our Pallas kernels
    cudnn    on NVIDIA GPUs, cuDNN's; in 16 bits only
    auto     flash on TPUs, cudnn on GPUs of compute capability 8 and later, xla elsewhere

Where queries are fewer than ``LONG`` tokens (the coarse stages) or the devices do not divide the
rows (one picture on eight chips), there is little to gain or no way to divide, and XLA computes
whatever the kind; for cuDNN keys must be as many (texts are not). A longer call that the kernel
cannot take goes to XLA under ``auto`` and is refused where the kernel was asked for by name.

On several devices a kernel runs inside ``shard_map``, each device with its own rows and all heads.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.parallel.flash import flash
from emu_jax.parallel.mesh import AXES

KINDS = ("auto", "xla", "flash", "cudnn")
# Tokens from which on the weights' way through memory costs more than the arithmetic.
LONG = 1024
# Heads wider than this leave the flash kernel's tiles no room in a core's own memory.
_WIDEST = 512


def make_attend(kind: str, mesh: Mesh) -> Attend:
    """The attention called ``kind`` on the mesh's devices.

    Raises:
      UserError: no such kind, or these devices have no such kernel.
    """
    if kind not in KINDS:
        raise UserError(f"attention is one of {', '.join(KINDS)}, not {kind!r}.")
    device = mesh.devices.flat[0]
    has = {"tpu": "flash", "gpu": "cudnn", "cuda": "cudnn"}.get(device.platform, "xla")
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
    if kind == "flash" and q.shape[-1] > _WIDEST:
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
    tokens = min(q.shape[1], k.shape[1]) if kind == "cudnn" else q.shape[1]
    if tokens < LONG or q.shape[0] % mesh.size:
        return attend(q, k, v, mask)
    why = objection(kind, q, k, mask)
    if why and named:
        raise UserError(f"attention={kind} does not take {why}: set attention=auto or xla.")
    if why:
        return attend(q, k, v, mask)
    keys = None if mask is None else jnp.broadcast_to(mask[:, 0, 0], k.shape[:2])
    kernel = {"flash": flash, "cudnn": cudnn}[kind]
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
