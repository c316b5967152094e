"""Attention on TPUs as two Pallas kernels, one per direction, that never write the n x m weights.

Queries, keys, values and results keep the layout of the projections before and after attention:
[b, n, heads * d], without a separate axis for heads. (With jax's splash kernel, which needs one,
SDXL's step is modeled to spend 61 of 667 ms on copies, with these kernels 19 of 573.) A program
works on a group of lanes, 128 or a multiple: one head, or as many narrow heads as fit, one after
the other. The operand of a head is 0 in the lanes of the other heads, so products over all lanes
are correct.

    forward    for a tile of queries, over tiles of keys (FlashAttention, Dao et al. 2022):
               s = k (q / sqrt d)^T,  p = exp(s - max),  o^T = v^T p / sum(p)
    backward   for a tile of keys, over tiles of queries, with the log-sums of the rows from the
               forward pass (FlashAttention-2, Dao 2023, algorithm 2; the weights are recomputed
               once):
               dv = p do,  ds = p * (v do^T - sum(do * o)),  dk = ds q / sqrt d,
               dq^T = k^T ds / sqrt d, summed over the tiles of keys in the memory of the core

Weights have keys before queries, so the values of a query (maximum, sum) are a row, and a row
broadcasts over the keys at no cost.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from emu_jax.nn.stack import ATTENTION

_LANES = 128
# Tokens per tile: the largest of these that divides the tokens and is within _TILE_BYTES.
_TILES = (512, 256, 128)
# Bytes of a tile, and of the queries of one backward call (more queries take several calls). Both
# fit into the memory of the smallest core, the 16 MiB of a v4.
_TILE_BYTES, _MOST = 2**18, 2**20
_MEMORY = 48 * 2**20  # bytes that a program may request, on cores that have them
_NEVER = -1e30


def flash(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Bool[Array, "b m"] | None,
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v; ``keys`` is true for the keys that are attended to, at least one
    per row.

    Tokens, heads and lanes are padded to whole tiles. ``interpret`` runs it without a TPU, slowly.
    """
    (b, n, heads, d), m = q.shape, k.shape[1]
    lanes = _lanes(d)
    call = Call(d**-0.5, lanes, f"attention_{lanes}_of_{heads}x{n}x{m}x{d}", interpret)
    if keys is None and m % _TILES[-1]:
        keys = jnp.ones((b, m), bool)
    bias = None
    if keys is not None:
        bias = jnp.where(_padded(keys, 1, _TILES[-1]), 0.0, _NEVER)[..., None]
    wide = [_padded(x, 3, lanes).reshape(b, x.shape[1], heads * lanes) for x in (q, k, v)]
    q, k, v = (_padded(_padded(x, 1, _TILES[-1]), 2, call.width) for x in wide)
    out: Array = _attend(q, k, v, bias, call)
    return out[:, :n, : heads * lanes].reshape(b, n, heads, lanes)[..., :d]


class Call(NamedTuple):
    """The static arguments of a call; planning reads from the name what the call computes."""

    scale: float
    lanes: int
    name: str
    interpret: bool | pltpu.InterpretParams

    @property
    def width(self) -> int:
        """The lanes of one program."""
        return max(self.lanes, _LANES)

    def tile(self, x: Float[Array, "b n c"]) -> int:
        """Tokens per tile of ``x``."""
        most = _TILE_BYTES // (self.width * x.dtype.itemsize)
        return next(tile for tile in _TILES if x.shape[1] % tile == 0 and tile <= most)


def _lanes(d: int) -> int:
    """The lanes of a head of width ``d``: a divisor of 128, or a multiple."""
    return next((x for x in (32, 64) if d <= x), -(-d // _LANES) * _LANES)


def _padded(x: Array, axis: int, size: int) -> Array:
    """Padded at the end with zeros to a multiple of ``size``."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths) if widths[axis][1] else x


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m c"],
    bias: Float[Array, "b m 1"] | None,
    call: Call,
) -> Float[Array, "b n c"]:
    return _forward(q, k, v, bias, call)[0]


def _forward(q, k, v, bias, call):
    """(results, the log-sum of every query [b, groups of heads, tiles, heads, queries])."""
    (b, n, c), m, width = q.shape, k.shape[1], call.width
    groups, heads, bq, bk = c // width, width // call.lanes, call.tile(q), call.tile(k)
    rows = pl.BlockSpec((1, bq, width), lambda b, g, i, j, t: (b, i, g))
    columns = pl.BlockSpec((1, bk, width), lambda b, g, i, j, t: (b, t, g))
    biases = pl.BlockSpec((1, bk, 1), lambda b, g, i, j, t: (b, t, 0))
    sums = pl.BlockSpec((1, 1, 1, heads, bq), lambda b, g, i, j, t: (b, g, i, 0, 0))
    arrays = (q, k, v) if bias is None else (q, k, v, bias)
    kernel = pl.pallas_call(
        partial(_forward_kernel, call.scale, call.lanes, bias is not None),
        grid=(b, groups, n // bq, heads, m // bk),
        in_specs=[rows, columns, columns, biases][: len(arrays)],
        out_specs=[rows, sums],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((b, groups, n // bq, heads, bq), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((1, bq), jnp.float32),
            pltpu.VMEM((1, bq), jnp.float32),
            pltpu.VMEM((width, bq), jnp.float32),
        ],
        compiler_params=_parameters(2, 3),
        name=f"{call.name}_forward",
        interpret=call.interpret,
    )
    return kernel(*arrays)


def _forward_kernel(scale, lanes, masked, q_ref, k_ref, v_ref, *rest):
    bias_ref, (out_ref, lse_ref, top, total, acc) = _optional(masked, rest)
    j, t = pl.program_id(3), pl.program_id(4)

    @pl.when(t == 0)
    def _():
        top[...] = jnp.full_like(top, _NEVER)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    own = _own(lanes, j)
    s = _nt(k_ref[0], own(q_ref[0] * scale))
    if bias_ref is not None:
        s += bias_ref[0]
    highest = jnp.maximum(top[...], s.max(0, keepdims=True))
    p = jnp.exp(s - highest)
    shrink = jnp.exp(top[...] - highest)
    total[...] = total[...] * shrink + p.sum(0, keepdims=True)
    acc[...] = acc[...] * shrink + _tn(v_ref[0], p.astype(v_ref.dtype))
    top[...] = highest

    @pl.when(t == pl.num_programs(4) - 1)
    def _():
        out = (acc[...] / total[...]).T
        out_ref[0] = own(out.astype(out_ref.dtype), out_ref[0])
        lse_ref[0, 0, 0, pl.ds(j, 1)] = top[...] + jnp.log(total[...])


def _backward(call, residuals, dout):
    q, k, v, bias, out, lse = residuals
    tile = call.tile(q)
    most = max(_MOST // (call.width * q.dtype.itemsize) // tile, 1) * tile
    if q.shape[1] <= most:
        dq, dk, dv = _backward_of(q, k, v, bias, out, dout, lse, call, k.dtype)
    else:
        parts = []
        for i in range(0, q.shape[1], most):
            at, tiles = slice(i, i + most), slice(i // tile, (i + most) // tile)
            arrays = (q[:, at], k, v, bias, out[:, at], dout[:, at], lse[:, :, tiles])
            parts.append(_backward_of(*arrays, call, jnp.float32))
        dqs, dks, dvs = zip(*parts, strict=True)
        dq, dk, dv = jnp.concatenate(dqs, axis=1), jnp.stack(dks).sum(0), jnp.stack(dvs).sum(0)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), jax.tree.map(jnp.zeros_like, bias)


def _backward_of(q, k, v, bias, out, dout, lse, call, dtype):
    """The gradients of q, and of k and v as ``dtype``."""
    (b, n, c), m, width = q.shape, k.shape[1], call.width
    groups, heads, bk = c // width, width // call.lanes, call.tile(k)
    tiles, bq = lse.shape[2], lse.shape[4]
    rows = pl.BlockSpec((1, n, width), lambda b, g, t, j: (b, 0, g))
    columns = pl.BlockSpec((1, bk, width), lambda b, g, t, j: (b, t, g))
    biases = pl.BlockSpec((1, bk, 1), lambda b, g, t, j: (b, t, 0))
    sums = pl.BlockSpec((1, 1, tiles, heads, bq), lambda b, g, t, j: (b, g, 0, 0, 0))
    arrays = (q, k, v, out, dout, lse) if bias is None else (q, k, v, out, dout, lse, bias)
    kernel = pl.pallas_call(
        partial(_backward_kernel, call.scale, call.lanes, bias is not None),
        grid=(b, groups, m // bk, heads),
        in_specs=[rows, columns, columns, rows, rows, sums, biases][: len(arrays)],
        out_specs=[rows, columns, columns],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, dtype),
            jax.ShapeDtypeStruct(v.shape, dtype),
        ],
        scratch_shapes=[
            pltpu.VMEM((tiles, width, bq), jnp.float32),
            pltpu.VMEM((bk, width), jnp.float32),
            pltpu.VMEM((bk, width), jnp.float32),
            pltpu.VMEM((tiles, heads, bq), jnp.float32),
        ],
        compiler_params=_parameters(2, 2),
        name=f"{call.name}_backward",
        interpret=call.interpret,
    )
    return kernel(*arrays)


def _backward_kernel(scale, lanes, masked, q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, *rest):
    bias_ref, (dq_ref, dk_ref, dv_ref, dq, dk, dv, delta) = _optional(masked, rest)
    t, j = pl.program_id(2), pl.program_id(3)
    tiles, width, bq = dq.shape
    own = _own(lanes, j)

    @pl.when((t == 0) & (j == 0))
    def _():
        dq[...] = jnp.zeros_like(dq)

    @pl.when(j == 0)
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    k, v = k_ref[0], v_ref[0]
    own_k = own(k)

    def tile(i, _):
        at = (0, pl.ds(pl.multiple_of(i * bq, bq), bq))
        q, dout = own(q_ref[at] * scale), own(dout_ref[at])

        @pl.when(t == 0)
        def _():
            product = dout.astype(jnp.float32) * out_ref[at].astype(jnp.float32)
            # The sum over lanes is a product with ones: jnp.sum would give a column, not a row.
            row = _nt(jnp.ones((8, width), jnp.float32), product)[:1]
            delta[i, pl.ds(j, 1)] = row

        s = _nt(k, q)
        if bias_ref is not None:
            s += bias_ref[0]
        p = jnp.exp(s - lse_ref[0, 0, i, pl.ds(j, 1)])
        dv[...] += _nn(p.astype(dout.dtype), dout)
        ds = (p * (_nt(v, dout) - delta[i, pl.ds(j, 1)])).astype(q.dtype)
        dk[...] += _nn(ds, q)
        dq[i] += _tn(own_k, ds)

    jax.lax.fori_loop(0, tiles, tile, None)

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        dk_ref[0] = dk[...].astype(dk_ref.dtype)
        dv_ref[0] = dv[...].astype(dv_ref.dtype)

    @pl.when((t == pl.num_programs(2) - 1) & (j == pl.num_programs(3) - 1))
    def _():
        for i in range(tiles):
            dq_ref[0, i * bq : (i + 1) * bq] = (dq[i].T * scale).astype(dq_ref.dtype)


def _optional(masked, refs):
    """(The bias of the keys or None, the other refs)."""
    return (refs[0], refs[1:]) if masked else (None, refs)


def _own(lanes, j):
    """A function that keeps the lanes of head ``j`` in ``x`` and takes the others from ``rest``."""
    if lanes >= _LANES:
        return lambda x, rest=None: x

    def own(x, rest=None):
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) - j * lanes
        mine = (lane >= 0) & (lane < lanes)
        return jnp.where(mine, x, jnp.zeros_like(x) if rest is None else rest)

    return own


def _product(dimensions, x, y):
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimension_numbers = (dimensions, ((), ()))
    return jax.lax.dot_general(
        x, y, dimension_numbers, precision=precision, preferred_element_type=jnp.float32
    )


_nn = partial(_product, ((1,), (0,)))
_nt = partial(_product, ((1,), (1,)))
_tn = partial(_product, ((0,), (0,)))


def _parameters(parallel: int, ordered: int) -> pltpu.CompilerParams:
    order = (pltpu.PARALLEL,) * parallel + (pltpu.ARBITRARY,) * ordered
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=_MEMORY)


def _attend_forward(q, k, v, bias, call):
    out, lse = (checkpoint_name(x, ATTENTION) for x in _forward(q, k, v, bias, call))
    return out, (q, k, v, bias, out, lse)


_attend.defvjp(_attend_forward, _backward)
