"""A transformer in the U-Net's place: patches of a feature map or picture in, as much out.

    stem   patches of p x p positions, each a dense layer's vector, plus sines of its place
    trunk  emu_jax.nn.trunk, which reads the text and is told time, vector and level by AdaLN-zero
    head   AdaLN and a dense layer back to patches, zero at first

That of Peebles & Xie (2023, "DiT"), with cross-attention to the text as PixArt (Chen et al. 2023)
has it. Places are sines, so that maps of any size have some.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import Attend, attend
from emu_jax.nn.embeddings import TimestepEmbedding, sinusoids
from emu_jax.nn.layers import LayerNorm, linear
from emu_jax.nn.stack import Constrain, Gather
from emu_jax.nn.trunk import trunk

_TIME_INPUTS = 256


class DiffusionTransformer(nnx.Module):
    """``transformer(x, t, context, context_mask, vector, level)`` -> the network's output.

    What it is told is what :class:`emu_jax.nn.unet.UNet` is: ``vector_width`` (pooled text, sizes)
    and ``level`` (a noise level) are added to the time's embedding. A spatial condition is
    concatenated to ``x`` by the caller and counted in ``in_channels``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        context_width: int | None,
        vector_width: int | None = None,
        level: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        if width % 4:
            raise UserError(
                f"A transformer of width {width} has no sines of rows and columns: take a "
                "multiple of 4."
            )
        self.patch = patch
        self.stem = linear(patch**2 * in_channels, width, rngs=rngs)
        self.time = TimestepEmbedding(_TIME_INPUTS, width, rngs=rngs)
        self.vector = TimestepEmbedding(vector_width, width, rngs=rngs) if vector_width else None
        self.level = TimestepEmbedding(_TIME_INPUTS, width, rngs=rngs) if level else None
        self.trunk = trunk(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            context_width=context_width,
            told_width=width,
            remat=remat,
            attend=attend,
            constrain=constrain,
            gather=gather,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, rngs=rngs)
        self.modulation = linear(width, 2 * width, zero=True, rngs=rngs)
        self.head = linear(width, patch**2 * out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        context: Float[Array, "b l d"] | None = None,
        context_mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
        level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """``t`` is what the network is told of the time; h and w are multiples of the patch."""
        told = self.time(sinusoids(t, _TIME_INPUTS).astype(x.dtype))
        for name, module, value in (
            ("vector", self.vector, vector),
            ("level", self.level, level),
        ):
            if (value is None) != (module is None):
                needs = "needs" if module else "does not take"
                raise UserError(f"This transformer {needs} a {name}.")
            if module is not None and value is not None:
                sines = sinusoids(value, _TIME_INPUTS) if name == "level" else value
                told = told + module(sines.astype(x.dtype))
        told = jax.nn.silu(told)

        y = self.stem(_patches(x, self.patch))
        b, h, w, d = y.shape
        y = (y + _places(h, w, d).astype(y.dtype)).reshape(b, h * w, d)
        y = self.trunk(y, context, context_mask, told)
        shift, scale = jnp.split(self.modulation(told)[:, None], 2, axis=-1)
        y = self.head(self.norm(y) * (1 + scale) + shift)
        return unpatched(y.reshape(b, h, w, -1), self.patch)


def _patches(x: Float[Array, "b h w c"], p: int) -> Float[Array, "b h/p w/p p*p*c"]:
    b, h, w, c = x.shape
    if h % p or w % p:
        raise UserError(f"A map of {h} x {w} does not divide into patches of {p} x {p}.")
    x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
    return x.reshape(b, h // p, w // p, p * p * c)


def unpatched(x: Float[Array, "b h w p*p*c"], p: int) -> Float[Array, "b h*p w*p c"]:
    """The map whose patches of p x p positions are given, each a vector."""
    b, h, w, _ = x.shape
    return x.reshape(b, h, w, p, p, -1).swapaxes(2, 3).reshape(b, h * p, w * p, -1)


def _places(h: int, w: int, width: int) -> Float[Array, "h w {width}"]:
    """Half of the vector from the row's number, half from the column's."""
    rows, columns = (sinusoids(jnp.arange(n, dtype=jnp.float32), width // 2) for n in (h, w))
    return jnp.concatenate(
        [
            jnp.broadcast_to(rows[:, None], (h, w, width // 2)),
            jnp.broadcast_to(columns[None], (h, w, width // 2)),
        ],
        axis=-1,
    )
