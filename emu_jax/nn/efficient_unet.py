"""Imagen's Efficient U-Net, for super-resolution (Saharia et al. 2022, appendix B.1).

Most of its layers are at the smallest maps. A down stage halves the map before its convolutions, an
up stage doubles it after them. Each stage has one skip connection, scaled by 1 / sqrt 2. Residual
blocks have scale-shift norms. Attention follows a stage's blocks, in stages that have it.
``middle`` adds residual blocks between the down and up stages, at the coarsest map. All residual
blocks share the embedding

    e = time_embedding(sinusoids(timestep)) + class_embedding(sinusoids(level)) + pooled text  (1)
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import AddedKVAttention, Attend, attend
from emu_jax.nn.embeddings import TextTimeEmbedding, TimestepEmbedding, sinusoids
from emu_jax.nn.layers import Downsample, GroupNorm, Upsample, activation, conv
from emu_jax.nn.resnet import ResnetBlock
from emu_jax.nn.stack import Constrain, Gather, remat_policy, rematerialize

_SKIP_SCALE = 2**-0.5


class EfficientUNet(nnx.Module):
    """``unet(x, timestep, context, mask, level=level)`` -> the network's output, as large as x.

    The caller concatenates the low-resolution image to ``x`` and counts it in ``in_channels``;
    ``level`` is the image's noise level. One value per stage, the finest first: ``widths``;
    ``blocks`` (residual blocks, of the down and of the up stage); ``attention``: "none", "cross"
    (to the text alone) or "full" (to text and pixels). ``context_width`` is the width of the text's
    tokens. The pooled text is a vector of ``vector_width``, or else the tokens, pooled by attention
    with ``text_pool_heads``.

    ``remat`` and ``gather`` apply to every residual block and attention (:mod:`emu_jax.nn.stack`).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        attention: Sequence[str],
        head_width: int,
        context_width: int,
        vector_width: int | None = None,
        text_pool_heads: int | None = None,
        middle: int = 0,
        level: bool = False,
        time_width: int | None = None,
        groups: int = 32,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        remat = remat_policy(remat)
        if not len(widths) == len(blocks) == len(attention):
            raise UserError(
                f"widths has {len(widths)} values, blocks {len(blocks)} and attention "
                f"{len(attention)}; an Efficient U-Net takes one of each per stage."
            )
        temb = time_width or 4 * widths[0]
        self.time_inputs = widths[0]
        self.act, self.constrain = activation("silu"), constrain
        self.rematerialized = partial(rematerialize, policy=remat, gather=gather)
        self.gathered = partial(rematerialize, policy="none", gather=gather)

        def resnet(inputs: int, outputs: int) -> ResnetBlock:
            return ResnetBlock(
                inputs, outputs, temb_channels=temb, groups=groups, scale_shift=True, rngs=rngs
            )

        def stage(inputs: int, i: int, resampler: nnx.Module) -> Stage:
            sides = [inputs] + [widths[i]] * (blocks[i] - 1)
            return Stage(
                [resnet(side, widths[i]) for side in sides],
                _attention(
                    attention[i], widths[i], head_width, context_width, groups, attend, rngs
                ),
                resampler,
                self.rematerialized,
            )

        self.conv_in = conv(in_channels, widths[0], rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], temb, rngs=rngs)
        self.class_embedding = TimestepEmbedding(widths[0], temb, rngs=rngs) if level else None
        if (vector_width is None) == (text_pool_heads is None):
            raise UserError(
                "An Efficient U-Net takes either vector_width or text_pool_heads; give exactly one "
                "of them."
            )
        if vector_width:
            self.add_embedding = TimestepEmbedding(vector_width, temb, rngs=rngs)
        else:
            self.add_embedding = TextTimeEmbedding(
                context_width, temb, text_pool_heads or 1, attend=attend, rngs=rngs
            )
        self.mid_blocks = nnx.List(resnet(widths[-1], widths[-1]) for _ in range(middle))
        before = [widths[0], *widths[:-1]]
        self.down_blocks = nnx.List(
            stage(before[i], i, Downsample(before[i], rngs=rngs)) for i in range(len(widths))
        )
        self.up_blocks = nnx.List(
            stage(
                widths[min(i + 1, len(widths) - 1)] + widths[i], i, Upsample(widths[i], rngs=rngs)
            )
            for i in reversed(range(len(widths)))
        )
        self.conv_norm_out = GroupNorm(widths[0], groups, eps=1e-5, rngs=rngs)
        self.conv_out = conv(widths[0], out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
        *,
        level: Float[Array, "b"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """h and w may be any size: maps of odd size are cropped after doubling. ``mask`` says which
        tokens are attended to."""
        if (level is not None) != (self.class_embedding is not None):
            needs = "does not take" if self.class_embedding is None else "needs"
            raise UserError(
                f"This Efficient U-Net {needs} a level, the noise level of a low-resolution image."
            )

        def features(value: Array) -> Array:
            return sinusoids(value, self.time_inputs).astype(x.dtype)

        temb = self.time_embedding(features(timestep))
        if isinstance(self.add_embedding, TextTimeEmbedding):
            temb = temb + self.add_embedding(context, mask)
        elif vector is not None:
            temb = temb + self.add_embedding(vector.astype(x.dtype))
        else:
            raise UserError("This Efficient U-Net needs a vector.")
        if self.class_embedding is not None and level is not None:
            temb = temb + self.class_embedding(features(level))
        temb = self.act(temb)

        x = self.constrain(self.gathered(self.conv_in)(x))
        skips, sizes = [], []
        for block in self.down_blocks:
            sizes.append((x.shape[1], x.shape[2]))
            x = self.constrain(self.gathered(block.resampler)(x))
            x = self.constrain(block(x, temb, context, mask))
            skips.append(x)
        for block in self.mid_blocks:
            x = self.constrain(self.rematerialized(block)(x, temb))
        for block in self.up_blocks:
            x = jnp.concatenate([x, skips.pop() * _SKIP_SCALE], axis=-1)
            x = self.constrain(block(x, temb, context, mask))
            x = self.constrain(self.gathered(block.resampler)(x, sizes.pop()))
        return self.gathered(self.conv_out)(self.act(self.conv_norm_out(x)))


class Stage(nnx.Module):
    """Residual blocks, then attention if any. The network calls ``resampler``."""

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attention: nnx.Module | None,
        resampler: nnx.Module,
        rematerialized: Callable[[nnx.Module], Callable],
    ):
        self.resnets = nnx.List(resnets)
        self.attention = attention
        self.resampler = resampler
        self.rematerialized = rematerialized

    def __call__(
        self, x: Float[Array, "b h w c"], temb: Array, context: Array, mask: Array | None
    ) -> Float[Array, "b h w d"]:
        for resnet in self.resnets:
            x = self.rematerialized(resnet)(x, temb)
        return (
            x if self.attention is None else self.rematerialized(self.attention)(x, context, mask)
        )


def _attention(
    kind: str,
    width: int,
    head_width: int,
    context_width: int,
    groups: int,
    attend: Attend,
    rngs: nnx.Rngs,
) -> AddedKVAttention | None:
    if kind not in ("none", "cross", "full"):
        raise UserError(f"A stage's attention is {kind!r}; use 'none', 'cross' or 'full'.")
    if kind == "none":
        return None
    if width % head_width:
        raise UserError(
            f"A stage's {width} channels do not divide into heads of {head_width}; change widths "
            "or head_width."
        )
    return AddedKVAttention(
        width,
        width // head_width,
        head_width,
        context_width=context_width,
        groups=groups,
        only_cross_attention=kind == "cross",
        attend=attend,
        rngs=rngs,
    )
