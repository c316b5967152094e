"""From the raw states of frozen text encoders to the conditioning of a denoiser.

Raw states do not train and can be cached; the conditioner trains with the generator. It projects
each encoder's tokens to a common width and joins the encoders,

    combine="tokens":   [b, l_1 + l_2 + ..., width]         (Emu: CLIP and T5 one after the other)
    combine="channels": [b, l, width_1 + width_2 + ...]     (SDXL: two CLIPs side by side)
    combine="padded":   [b, l + l_n, width_n]               (Stable Diffusion 3: two CLIPs side by
                        side, padded with zeros to the width of the last encoder, T5, and then T5's
                        tokens)

and makes the vector that is embedded and added to the timestep embedding: pooled text, then
sinusoids of the sizes in SDXL's order (original height, width, crop top, left, target height,
width), or of aMUSEd's micro-conditions (original width, height, crop top, left, aesthetic score).
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
    """A text encoder's output; ``mask`` says which states a denoiser may attend to."""

    states: Float[Array, "b l w"]
    mask: Bool[Array, "b l"]
    pooled: Float[Array, "b p"] | None = None


class Conditioner(nnx.Module):
    """``encoders`` maps a name to (width, pooled width); they are joined in this order.

    ``width`` is the common width of the tokens (None: no projection). ``size_features`` is the
    number of sinusoids per size (0: no conditioning on sizes). ``aesthetic_score`` replaces the
    sizes by aMUSEd's micro-conditions, with this score for every image. The attributes
    ``context_width`` and ``vector_width`` (0: no vector) are the widths of the outputs.
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
            raise UserError(f"combine is {combine!r}; use 'tokens', 'channels' or 'padded'.")
        if size_features % 2:
            raise UserError(f"size_features is {size_features}; use an even number.")
        widths = [width or own for own, _ in encoders.values()]
        if combine == "tokens" and len(set(widths)) > 1:
            raise UserError(
                f"Encoders of widths {widths} cannot be joined with combine='tokens'; set "
                "conditioner.width, a common width."
            )
        if combine == "padded" and not 0 < sum(widths[:-1]) <= widths[-1]:
            raise UserError(
                f"Encoders of widths {widths} cannot be joined with combine='padded'; use two or "
                "more, whose widths without the last sum to at most the last."
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
        return self.joined(encoded, sizes)

    def unconditional(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None = None
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"], Float[Array, "b p"] | None]:
        """The same for the null text or a negative prompt."""
        return self(encoded, sizes)

    def joined(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None = None
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"], Float[Array, "b p"] | None]:
        """The encoders' states projected and joined as they are, without adapters."""
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
            # In fp32 up to here: bf16 rounds 1,026 to 1,024.
            numbers = self._numbers(sizes)
            parts.append(sinusoids(numbers, self.size_features).reshape(numbers.shape[0], -1))
        return jnp.concatenate([p.astype(dtype) for p in parts], axis=1) if parts else None

    def _numbers(self, sizes: Int[Array, "b 6"]) -> Float[Array, "b n"]:
        sizes = sizes.astype(jnp.float32)
        if self.aesthetic_score is None:
            return sizes
        height, width, top, left, *_ = sizes.T
        score = jnp.full_like(height, self.aesthetic_score)
        return jnp.stack([width, height, top, left, score], axis=1)
