"""From frozen encoders' raw states to what a denoiser is conditioned on.

Raw states are frozen and can be cached; the conditioner trains with the generator. It projects each
encoder's tokens to a common width and joins the encoders,

    combine="tokens":   [b, l_1 + l_2 + ..., width]         (Emu: CLIP and T5 one after the other)
    combine="channels": [b, l, width_1 + width_2 + ...]     (SDXL: two CLIPs side by side)
    combine="padded":   [b, l + l_n, width_n]               (Stable Diffusion 3: two CLIPs side by
                        side, with zeros up to the width of the last encoder, T5, then its tokens)

and makes the vector that is embedded and added to the time embedding: pooled text, then sinusoids
of the sizes (original height, width, crop top, left, target height, width), in SDXL's order, or of
aMUSEd's micro-conditions (original width, height, crop top, left, aesthetic score).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.embeddings import sinusoids
from emu_jax.nn.layers import linear

SIZES = 6
MICRO_CONDITIONS = 5


class Encoded(NamedTuple):
    """What a text encoder hands over; ``mask`` says which states a denoiser may attend to."""

    states: Float[Array, "b l w"]
    mask: Bool[Array, "b l"]
    pooled: Float[Array, "b p"] | None = None


class Conditioner(nnx.Module):
    """``encoders`` maps a name to (width, pooled width); their order is the order of joining.

    ``width`` is the common width of the tokens (None: no projection), ``size_features`` the number
    of sinusoids a size (0: sizes do not condition). ``aesthetic_score`` makes them aMUSEd's, with
    this score for every picture. ``context_width`` and ``vector_width`` (0: there is no vector) say
    what a denoiser will be given.
    """

    def __init__(
        self,
        encoders: Mapping[str, tuple[int, int]],
        *,
        width: int | None = None,
        combine: Literal["tokens", "channels", "padded"] = "tokens",
        size_features: int = 256,
        aesthetic_score: float | None = None,
        rngs: nnx.Rngs,
    ):
        if combine not in ("tokens", "channels", "padded"):
            raise UserError(f'combine is "tokens", "channels" or "padded", not "{combine}".')
        if size_features % 2:
            raise UserError(f"size_features must be even, not {size_features}.")
        widths = [width or own for own, _ in encoders.values()]
        if combine == "tokens" and len(set(widths)) > 1:
            raise UserError(
                f"Encoders of widths {widths} can only be joined by tokens through a common width: "
                "set the conditioner's width."
            )
        if combine == "padded" and not 0 < sum(widths[:-1]) <= widths[-1]:
            raise UserError(
                f"Encoders of widths {widths} are not joined by padding: all but the last side by "
                "side are at most as wide as the last."
            )
        self.encoders = tuple(encoders)
        self.pooling = tuple(name for name, (_, pooled) in encoders.items() if pooled)
        self.combine = combine
        self.size_features, self.aesthetic_score = size_features, aesthetic_score
        numbers = SIZES if aesthetic_score is None else MICRO_CONDITIONS
        self.context_width = sum(widths) if combine == "channels" else widths[-1]
        self.vector_width = sum(p for _, p in encoders.values()) + numbers * size_features
        if width:
            self.projections = nnx.Dict(
                {name: linear(own, width, rngs=rngs) for name, (own, _) in encoders.items()}
            )
        else:
            self.projections = None

    def __call__(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None = None
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"], Float[Array, "b p"] | None]:
        """(context, context mask, vector or None)."""
        states = [self._project(name, encoded[name].states) for name in self.encoders]
        masks = [encoded[name].mask for name in self.encoders]
        if self.combine == "padded":
            beside = jnp.concatenate(states[:-1], axis=2)
            rest = self.context_width - beside.shape[2]
            states = [jnp.pad(beside, ((0, 0), (0, 0), (0, rest))), states[-1]]
            masks = [jnp.any(jnp.stack(masks[:-1]), axis=0), masks[-1]]
        if self.combine == "channels":
            context, mask = jnp.concatenate(states, axis=2), jnp.any(jnp.stack(masks), axis=0)
        else:
            context, mask = jnp.concatenate(states, axis=1), jnp.concatenate(masks, axis=1)
        return context, mask, self._vector(encoded, sizes, context.dtype)

    def _project(self, name: str, states: Float[Array, "b l w"]) -> Float[Array, "b l d"]:
        return self.projections[name](states) if self.projections is not None else states

    def _vector(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None, dtype: jnp.dtype
    ) -> Float[Array, "b p"] | None:
        parts = []
        for name in self.pooling:
            pooled = encoded[name].pooled
            if pooled is None:
                raise ValueError(f"encoder {name} has a pooled width, but gave no pooled vector")
            parts.append(pooled)
        if self.size_features:
            if sizes is None:
                raise ValueError("size_features is set, so the conditioner needs sizes [b, 6]")
            # In fp32 up to here: bf16 cannot tell 1,024 from 1,026.
            told = self._told(sizes)
            parts.append(sinusoids(told, self.size_features).reshape(told.shape[0], -1))
        return jnp.concatenate([p.astype(dtype) for p in parts], axis=1) if parts else None

    def _told(self, sizes: Int[Array, "b 6"]) -> Float[Array, "b n"]:
        sizes = sizes.astype(jnp.float32)
        if self.aesthetic_score is None:
            return sizes
        height, width, top, left, *_ = sizes.T
        score = jnp.full_like(height, self.aesthetic_score)
        return jnp.stack([width, height, top, left, score], axis=1)
