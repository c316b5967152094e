"""A transformer instead of a U-Net, over patches of a feature map or image.

    stem   a dense layer from each patch of p x p positions, plus sinusoids of its position
    trunk  emu_jax.nn.trunk: cross-attention to the text; timestep, vector and level by AdaLN-zero
    head   AdaLN and a dense layer back to patches, which starts at zero

The architecture of Peebles & Xie (2023, "DiT"), with cross-attention to the text as in PixArt (Chen
et al. 2023). Position embeddings are sinusoids, so that maps of any size have them.
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

_TIME_FEATURES = 256


class DiffusionTransformer(nnx.Module):
    """``transformer(x, timestep, context, mask, vector, level=level)`` -> the network's output.

    The conditioning is that of :class:`emu_jax.nn.unet.UNet`: the embeddings of the vector
    (``vector_width``: pooled text, sizes) and of the noise level (``level``) are added to the
    timestep embedding. The caller concatenates a spatial condition to ``x`` and counts it in
    ``in_channels``.
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
                f"The transformer's width is {width}; use a multiple of 4, for the sinusoids of "
                "rows and columns."
            )
        self.patch = patch
        self.stem = linear(patch**2 * in_channels, width, rngs=rngs)
        self.time = TimestepEmbedding(_TIME_FEATURES, width, rngs=rngs)
        self.vector = TimestepEmbedding(vector_width, width, rngs=rngs) if vector_width else None
        self.level = TimestepEmbedding(_TIME_FEATURES, width, rngs=rngs) if level else None
        self.trunk = trunk(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            context_width=context_width,
            conditioning_width=width,
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
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
        *,
        level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """h and w are multiples of the patch; ``mask`` says which of the l tokens are attended
        to."""
        conditioning = self.time(sinusoids(timestep, _TIME_FEATURES).astype(x.dtype))
        for name, module, value in (
            ("vector", self.vector, vector),
            ("level", self.level, level),
        ):
            if (value is None) != (module is None):
                needs = "needs" if module else "does not take"
                raise UserError(f"This transformer {needs} a {name}.")
            if module is not None and value is not None:
                features = sinusoids(value, _TIME_FEATURES) if name == "level" else value
                conditioning = conditioning + module(features.astype(x.dtype))
        conditioning = jax.nn.silu(conditioning)

        y = self.stem(_patches(x, self.patch))
        b, h, w, d = y.shape
        y = (y + _positions(h, w, d).astype(y.dtype)).reshape(b, h * w, d)
        y = self.trunk(y, context, mask, conditioning)
        shift, scale = jnp.split(self.modulation(conditioning)[:, None], 2, axis=-1)
        y = self.head(self.norm(y) * (1 + scale) + shift)
        return unpatched(y.reshape(b, h, w, -1), self.patch)


def _patches(x: Float[Array, "b h w c"], p: int) -> Float[Array, "b h//{p} w//{p} c*{p}**2"]:
    b, h, w, c = x.shape
    require_patches(h, w, p)
    x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
    return x.reshape(b, h // p, w // p, p * p * c)


def require_patches(h: int, w: int, p: int) -> None:
    """Raises a UserError if a map of h x w does not divide into patches of p x p."""
    if h % p or w % p:
        raise UserError(
            f"A map of {h} x {w} does not divide into patches of {p} x {p}; use another image size."
        )


def unpatched(x: Float[Array, "b h w d"], p: int) -> Float[Array, "b h*{p} w*{p} d//{p}**2"]:
    """The map whose patches of p x p positions are given, one vector each."""
    b, h, w, _ = x.shape
    return x.reshape(b, h, w, p, p, -1).swapaxes(2, 3).reshape(b, h * p, w * p, -1)


def _positions(h: int, w: int, width: int) -> Float[Array, "h w {width}"]:
    """Sinusoids: half of the vector from the row's number, half from the column's."""
    rows, columns = (sinusoids(jnp.arange(n, dtype=jnp.float32), width // 2) for n in (h, w))
    return jnp.concatenate(
        [
            jnp.broadcast_to(rows[:, None], (h, w, width // 2)),
            jnp.broadcast_to(columns[None], (h, w, width // 2)),
        ],
        axis=-1,
    )
