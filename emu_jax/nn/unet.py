"""The U-Net of diffusion models: one class for latent and pixel diffusion.

A feature map passes down stages of residual blocks (each followed by attention, in stages that have
it), a middle block and up stages. Each up block also takes the output of one down block, by a skip
connection. SD 1.5, SDXL, DeepFloyd IF and Imagen's base differ in the constructor's arguments
alone. Parameters are named as in diffusers' UNet2DConditionModel. All residual blocks share the
embedding

    e = time_embedding(sinusoids(timestep)) + class_embedding(sinusoids(level))
        + add_embedding(vector)                                                            (1)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from emu_jax.errors import UserError
from emu_jax.nn.attention import AddedKVAttention, Attend, attend
from emu_jax.nn.embeddings import TextTimeEmbedding, TimestepEmbedding, sinusoids
from emu_jax.nn.layers import Downsample, GroupNorm, Upsample, activation, conv, linear
from emu_jax.nn.resnet import ResnetBlock
from emu_jax.nn.stack import Constrain, Gather, remat_policy, rematerialize
from emu_jax.nn.transformer import SpatialTransformer

Text = tuple[Float[Array, "b l _"] | None, Bool[Array, "b l"] | None]


class Stage(nnx.Module):
    """A down, middle or up stage: residual blocks, each with an attention, and a resampler.

    ``attentions`` is empty, or has as many entries as ``resnets``, or (in the middle) one fewer.
    """

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attentions: Sequence[nnx.Module],
        *,
        downsampler: nnx.Module | None = None,
        upsampler: nnx.Module | None = None,
        remat: str = "none",
        gather: Gather | None = None,
    ):
        self.remat, self.gather = remat, gather
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)
        self.downsamplers = nnx.List([] if downsampler is None else [downsampler])
        self.upsamplers = nnx.List([] if upsampler is None else [upsampler])

    def block(self, i: int, x: Array, temb: Array, *text: Array | None) -> Array:
        """Residual block ``i`` and the attention after it; ``text`` is a context and its mask."""
        x = rematerialize(self.resnets[i], self.remat, self.gather)(x, temb)
        if i >= len(self.attentions):
            return x
        attention = self.attentions[i]
        if not isinstance(attention, SpatialTransformer):  # which rematerializes each layer
            attention = rematerialize(attention, self.remat, self.gather)
        return attention(x, *text)

    def resample(self, x: Array, temb: Array, *size: tuple[int, int]) -> Array:
        """The end of the stage: halves x, or doubles it to ``size``."""
        (module,) = (*self.downsamplers, *self.upsamplers)
        rest = (temb,) if isinstance(module, ResnetBlock) else size
        return rematerialize(module, "none", self.gather)(x, *rest)


class UNet(nnx.Module):
    """``unet(x, timestep, context, mask, vector, level=level)`` -> the network's output, as large
    as x.

    The caller concatenates a spatial condition (a low-resolution image, a mask) to ``x`` and counts
    it in ``in_channels``. Arguments given per stage are one value for all stages, or a tuple from
    the finest stage to the coarsest:

    - ``widths``: channels; ``blocks``: residual blocks of a down stage (an up stage has one more);
    - ``transformer_depth``: attention layers after each block, 0 = none; ``mid_depth``: the same
      for the middle;
    - ``heads`` or ``head_width``: one of the two; the other follows from the width;
    - ``only_cross_attention``: no self-attention (in the middle as in the coarsest stage).

    ``out_channels`` None: without up stages and output layers, for :mod:`emu_jax.nn.control`.

    The conditioning besides the timestep: ``context_width`` (tokens to attend to), ``text_width``
    (tokens of another width, which the network projects to ``context_width``), ``vector_width`` (a
    vector: pooled text and sizes), ``text_pool_heads`` (instead of the vector, the tokens pooled by
    attention), ``level`` (a noise level). ``time_width`` defaults to 4 times the finest width.

    Variants for pixel diffusion: ``attention="added_kv"`` (text and pixels in one attention, with
    ``context_norm``), ``resample="resnet"`` (residual blocks that halve and double),
    ``scale_shift``, ``output_scale_factor`` (divides residual sums).

    ``scan``, ``remat`` and ``gather`` change how it is computed, not what
    (:mod:`emu_jax.nn.stack`): ``scan`` makes each stack of transformer layers one loop, and
    ``remat`` applies to every transformer layer and residual block.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None,
        widths: Sequence[int],
        blocks: int | Sequence[int] = 2,
        transformer_depth: int | Sequence[int] = 1,
        mid_depth: int = 1,
        heads: int | Sequence[int] | None = None,
        head_width: int | Sequence[int] | None = None,
        context_width: int | None = None,
        text_width: int | None = None,
        vector_width: int | None = None,
        text_pool_heads: int | None = None,
        level: bool = False,
        time_width: int | None = None,
        attention: Literal["transformer", "added_kv"] = "transformer",
        linear_projection: bool = True,
        only_cross_attention: bool | Sequence[bool] = False,
        context_norm: bool = False,
        resample: Literal["conv", "resnet"] = "conv",
        scale_shift: bool = False,
        output_scale_factor: float = 1.0,
        act: str = "silu",
        groups: int = 32,
        eps: float = 1e-5,
        scan: bool = False,
        remat: str = "none",
        attend: Attend = attend,
        constrain: Constrain = lambda x: x,
        gather: Gather | None = None,
        rngs: nnx.Rngs,
    ):
        stages = len(widths)
        blocks = _per_stage("blocks", blocks, stages)
        depths = _per_stage("transformer_depth", transformer_depth, stages)
        only_cross = _per_stage("only_cross_attention", only_cross_attention, stages)
        if (heads is None) == (head_width is None):
            raise UserError("A U-Net takes either heads or head_width; give exactly one of them.")
        if heads is None:
            stage_heads = [
                width // w
                for width, w in zip(
                    widths, _per_stage("head_width", head_width, stages), strict=True
                )
            ]
        else:
            stage_heads = _per_stage("heads", heads, stages)
        for width, n in zip(widths, stage_heads, strict=True):
            if n < 1 or width % n:
                raise UserError(
                    f"A stage's {width} channels do not divide into {n} heads; change widths, "
                    "heads or head_width."
                )
        if attention == "added_kv" and max(*depths, mid_depth) > 1:
            raise UserError(
                f"transformer_depth is {depths} and mid_depth {mid_depth}; with attention="
                "'added_kv' use 0 or 1."
            )
        if attention == "added_kv" and scan:
            raise UserError(
                "scan is True, but attention='added_kv' has no stack of layers; use scan=False."
            )
        remat = remat_policy(remat)
        if vector_width and text_pool_heads:
            raise UserError(
                "A U-Net takes either vector_width or text_pool_heads, not both; leave out "
                "text_pool_heads, or the pooled text and sizes that make the vector."
            )
        if context_width is None and (text_width or text_pool_heads or attention == "added_kv"):
            raise UserError(
                "This U-Net attends to a text; give context_width, the width of its tokens."
            )

        temb = time_width or 4 * widths[0]
        self.time_inputs = widths[0]
        self.act, self.constrain = activation(act), constrain
        self.gathered = partial(rematerialize, policy="none", gather=gather)
        self.takes_context = context_width is not None

        resnet = partial(
            ResnetBlock,
            temb_channels=temb,
            groups=groups,
            eps=eps,
            act=act,
            scale_shift=scale_shift,
            output_scale_factor=output_scale_factor,
            rngs=rngs,
        )
        shared: dict[str, Any] = dict(
            context_width=context_width,
            groups=groups,
            attend=attend,
            rngs=rngs,
        )

        def attentions(stage: int, depth: int, count: int) -> list[nnx.Module]:
            size = (widths[stage], stage_heads[stage], widths[stage] // stage_heads[stage])
            options = shared | {"only_cross_attention": bool(only_cross[stage])}
            if attention == "added_kv":
                build = partial(AddedKVAttention, *size, context_norm=context_norm, **options)
            else:
                build = partial(
                    SpatialTransformer,
                    *size,
                    depth,
                    linear_projection=linear_projection,
                    scan=scan,
                    remat=remat,
                    constrain=constrain,
                    gather=gather,
                    **options,
                )
            return [build() for _ in range(count)] if depth else []

        def resampler(direction: Literal["down", "up"], width: int) -> nnx.Module:
            if resample == "resnet":
                return resnet(width, width, resample=direction)
            return (Downsample if direction == "down" else Upsample)(width, rngs=rngs)

        self.conv_in = conv(in_channels, widths[0], rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], temb, act=act, rngs=rngs)
        self.class_embedding = (
            TimestepEmbedding(widths[0], temb, act=act, rngs=rngs) if level else None
        )
        if vector_width:
            self.add_embedding = TimestepEmbedding(vector_width, temb, rngs=rngs)
        elif text_pool_heads and context_width:
            self.add_embedding = TextTimeEmbedding(
                text_width or context_width, temb, text_pool_heads, attend=attend, rngs=rngs
            )
        else:
            self.add_embedding = None
        self.encoder_hid_proj = (
            linear(text_width, context_width, rngs=rngs) if text_width and context_width else None
        )

        # The widths of the skip connections, in the order of the down stages.
        skips = [widths[0]]
        self.down_blocks = nnx.List()
        width = widths[0]
        for i in range(stages):
            before, width = width, widths[i]
            resnets = [resnet(before if j == 0 else width, width) for j in range(blocks[i])]
            down = resampler("down", width) if i < stages - 1 else None
            skips += [width] * (blocks[i] + 1 if down else blocks[i])
            self.down_blocks.append(
                Stage(
                    resnets,
                    attentions(i, depths[i], blocks[i]),
                    downsampler=down,
                    remat=remat,
                    gather=gather,
                )
            )

        self.mid_block = Stage(
            [resnet(width, width) for _ in range(2)],
            attentions(stages - 1, mid_depth, 1),
            remat=remat,
            gather=gather,
        )

        # The widths of all that a ControlNet adds to, the middle last.
        self.skip_widths = (*skips, width)
        if out_channels is None:
            return
        self.up_blocks = nnx.List()
        for i in reversed(range(stages)):
            resnets = []
            for _ in range(blocks[i] + 1):
                resnets.append(resnet(width + skips.pop(), widths[i]))
                width = widths[i]
            up = resampler("up", width) if i > 0 else None
            self.up_blocks.append(
                Stage(
                    resnets,
                    attentions(i, depths[i], blocks[i] + 1),
                    upsampler=up,
                    remat=remat,
                    gather=gather,
                )
            )

        self.conv_norm_out = GroupNorm(width, groups, eps=eps, rngs=rngs)
        self.conv_out = conv(width, out_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b l d"] | None = None,
        mask: Bool[Array, "b l"] | None = None,
        vector: Float[Array, "b p"] | None = None,
        *,
        level: Float[Array, "b"] | None = None,
        residuals: Sequence[Float[Array, "b _ _ _"]] | None = None,
        attention: bool = False,
    ) -> Float[Array, "b h w o"] | tuple[Float[Array, "b h w o"], Float[Array, "b m n"]]:
        """``timestep`` is as in training (SD: integers 0..999); ``level`` is the noise level of a
        spatial condition; ``mask`` says which tokens are attended to.

        ``residuals`` (of a ControlNet) are added to the skip connections, in the order of the down
        stages from the first convolution on, and the last one to the middle block's output.

        ``attention``: also returns how much attention each pixel of the middle block gets in its
        first self-attention, the mean over heads of the sum over queries.
        """
        temb, text = self.conditioned(x, timestep, context, mask, vector, level)
        x = self.constrain(self.gathered(self.conv_in)(x))
        x, skips = self.down(x, temb, text)
        received = self._received(x, temb) if attention else None
        x = self.middle(x, temb, text)

        if residuals is not None:
            if len(residuals) != len(skips) + 1:
                raise UserError(
                    f"This U-Net takes {len(skips) + 1} residuals, not {len(residuals)}; use a "
                    "ControlNet of the same architecture."
                )
            *added, last = residuals
            skips = [skip + residual for skip, residual in zip(skips, added, strict=True)]
            x = x + last

        for stage in self.up_blocks:
            for i in range(len(stage.resnets)):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self.constrain(stage.block(i, x, temb, *text))
            if stage.upsamplers:
                size = skips[-1].shape[1], skips[-1].shape[2]
                x = self.constrain(stage.resample(x, temb, size))
        x = self.gathered(self.conv_out)(self.act(self.conv_norm_out(x)))
        return x if received is None else (x, received)

    def conditioned(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b l d"] | None,
        mask: Bool[Array, "b l"] | None,
        vector: Float[Array, "b p"] | None,
        level: Float[Array, "b"] | None,
    ) -> tuple[Float[Array, "b t"], Text]:
        """(the activated embedding (1), the text that blocks attend to and its mask)."""
        for name, given, wanted in (
            ("context", context, self.takes_context),
            ("vector", vector, isinstance(self.add_embedding, TimestepEmbedding)),
            ("level", level, self.class_embedding is not None),
        ):
            if (given is not None) != wanted:
                raise UserError(f"This U-Net {'needs' if wanted else 'does not take'} a {name}.")

        def features(value: Array) -> Array:
            return sinusoids(value, self.time_inputs).astype(x.dtype)

        temb = self.time_embedding(features(timestep))
        if self.class_embedding is not None and level is not None:
            temb = temb + self.class_embedding(features(level))
        if isinstance(self.add_embedding, TextTimeEmbedding) and context is not None:
            temb = temb + self.add_embedding(context, mask)
        elif isinstance(self.add_embedding, TimestepEmbedding) and vector is not None:
            temb = temb + self.add_embedding(vector.astype(x.dtype))
        temb = self.act(temb)
        if self.encoder_hid_proj is not None and context is not None:
            context = self.encoder_hid_proj(context)
        return temb, (context, mask)

    def down(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b t"], text: Text
    ) -> tuple[Float[Array, "b h2 w2 k"], list[Float[Array, "b _ _ _"]]]:
        """The down stages on the first convolution's output: (features, skip connections)."""
        skips = [x]
        for stage in self.down_blocks:
            for i in range(len(stage.resnets)):
                x = self.constrain(stage.block(i, x, temb, *text))
                skips.append(x)
            if stage.downsamplers:
                x = self.constrain(stage.resample(x, temb))
                skips.append(x)
        return x, skips

    def middle(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b t"], text: Text
    ) -> Float[Array, "b h w c"]:
        """The middle block."""
        for i in range(len(self.mid_block.resnets)):
            x = self.constrain(self.mid_block.block(i, x, temb, *text))
        return x

    def require_attention(self) -> None:
        """Raises UserError if there is no self-attention in the middle block to return."""
        self._middle()

    def _middle(self) -> SpatialTransformer:
        (middle,) = self.mid_block.attentions or (None,)
        if not isinstance(middle, SpatialTransformer) or (
            middle.transformer_blocks.first.only_cross_attention
        ):
            raise UserError(
                "Self-attention guidance needs a U-Net with self-attention of its own in the "
                "middle block (attention='transformer', mid_depth from 1 on, no "
                "only_cross_attention); set sampling.sag_scale to 0."
            )
        return middle

    def _received(self, x: Array, temb: Array) -> Float[Array, "b m n"]:
        """The middle block's attention for its input. What is computed twice, the compiler finds,
        and the program without it stays as it is.
        """
        first = rematerialize(self.mid_block.resnets[0], "none", self.mid_block.gather)
        return self._middle().received(first(x, temb))


def _per_stage(name: str, value: Any, stages: int) -> tuple[int, ...]:
    """One value for all stages, or one per stage."""
    values = (value,) * stages if isinstance(value, int) else tuple(value)
    if len(values) != stages:
        raise UserError(
            f"{name} has {len(values)} values, but the U-Net has {stages} stages; give one value, "
            "or one per stage."
        )
    return values
