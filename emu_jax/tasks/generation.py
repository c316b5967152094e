"""The one generation task: codec x process x denoiser x conditioning.

    pixels --codec--> x0 --process--> (x_t, t, target) --denoiser(x_t, t | text, sizes)--> loss

Latent diffusion, pixel diffusion and masked generation differ only in the parts handed in. The
codec and the text encoders are frozen; the denoiser and the conditioner (projections of the
encoders' states) train. A super-resolution stage is told of a low-resolution picture besides.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params, nest, subtree
from emu_jax.process.guidance import dynamic_threshold, guided, rising, static_clip
from emu_jax.process.noise import fold_in
from emu_jax.process.protocol import Data, Process, Transform
from emu_jax.process.sampling import sample, time_grid
from emu_jax.tasks.base import Batch, Frozen, Group, Metrics, cast, to_pixels, to_unit_range
from emu_jax.tasks.codecs import Codec
from emu_jax.tasks.upsampling import Low
from emu_jax.text.encoder import TextEncoder

TIME_BINS = 5
_LOW = 2**31  # folded into a picture's key for its low-resolution noise: no sampler has such a step

THRESHOLDS = ("none", "static", "dynamic")


class Conditions(NamedTuple):
    """What the denoiser is told beside x and t; every leaf has the batch in front.

    Of a low-resolution picture it is told pixels and the level of noise in them, or tokens.
    """

    context: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]
    vector: Float[Array, "b p"] | None
    spatial: Float[Array, "b h w s"] | None = None
    level: Float[Array, "b"] | None = None
    low: Int[Array, "b h2 w2"] | None = None


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: a sampler, its steps and their spacing, classifier-free guidance.

    ``guidance_ramp``: guidance rises from none to its scale in the course of sampling.
    ``threshold`` holds every predicted x0 within the range of pixels (``process.guidance``); the
    dynamic one by the quantile ``threshold_quantile``, itself held below ``threshold_limit`` (0: no
    limit).
    """

    sampler: Any
    steps: int = 25
    spacing: Literal["trailing", "uniform", "leading", "karras"] = "trailing"
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    guidance_ramp: bool = False
    threshold: Literal["none", "static", "dynamic"] = "none"
    threshold_quantile: float = 0.995
    threshold_limit: float = 0.0

    def __post_init__(self):
        if self.threshold not in THRESHOLDS:
            raise UserError(
                f"sampling.threshold is {', '.join(THRESHOLDS)}, not {self.threshold!r}."
            )
        if not 0 < self.threshold_quantile <= 1:
            raise UserError(
                f"sampling.threshold_quantile is within (0, 1], not {self.threshold_quantile}."
            )
        if self.threshold_limit and self.threshold_limit < 1:
            raise UserError(
                f"sampling.threshold_limit is 0 (none) or from 1 on, not {self.threshold_limit}."
            )

    @property
    def transform(self) -> Transform | None:
        """What ``threshold`` does to x0."""
        match self.threshold:
            case "static":
                return static_clip
            case "dynamic":
                return partial(
                    dynamic_threshold, quantile=self.threshold_quantile, limit=self.threshold_limit
                )
            case _:
                return None


@dataclass(frozen=True)
class Generation:
    """Text to picture.

    ``null`` holds each encoder's null condition, one row; training replaces a picture's text by it
    at rate ``drop_text``, sampling uses it where there is no negative prompt. ``stream`` names the
    batch's stream. ``low`` makes it a super-resolution stage.
    """

    denoiser: Network
    conditioner: Network
    codec: Codec
    process: Process
    encoders: Mapping[str, TextEncoder]
    null: Mapping[str, Encoded]
    sampling: Sampling
    groups: Mapping[str, Group]
    frozen: Mapping[str, Frozen]
    drop_text: float = 0.1
    compute_dtype: Any = jnp.float32
    stream: str = "train"
    previews: int = 16
    low: Low | None = None

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        first, second = jax.random.split(key)
        return {
            **nest("denoiser", self.denoiser.init(first)),
            **nest("conditioner", self.conditioner.init(second)),
        }, {}

    def loss(
        self,
        group: str,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Params, Metrics]]:
        """Mean of the process's weighted loss over the batch."""
        rows = self._encoded(frozen, batch[self.stream])
        k_latent, k_drop, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(frozen, rows, k_latent))
        drop = jax.random.bernoulli(k_drop, self.drop_text, (x0.shape[0],))
        corrupted = self.process.corrupt(k_process, x0)
        conditions = self.condition(params, self.encode(frozen, rows, drop), rows["sizes"])
        if self.low:
            low = self.low.from_clean(rows, x0)
            seen = self.low.training_conditions(jax.random.fold_in(key, _LOW), low)
            conditions = conditions._replace(**seen)
        output = self.denoise(params, corrupted.x, corrupted.timestep_input, conditions)
        return jnp.mean(self.process.loss(output, corrupted)), (state, {})

    def validate(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Loss with the text at stratified times: whole, and by bin of t (0 = clean)."""
        (rows,) = batch.values()
        rows = self._encoded(frozen, rows)
        k_latent, k_time, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(frozen, rows, k_latent))
        n = x0.shape[0]
        t = (jax.random.permutation(k_time, n) + 0.5) / n
        corrupted = self.process.corrupt(k_process, x0, t)
        encoded = self.encode(frozen, rows, jnp.zeros((n,), bool))
        conditions = self.condition(params, encoded, rows["sizes"])
        if self.low:
            seen = self.low.sampling_conditions(
                jax.random.fold_in(key, _LOW), self.low.from_clean(rows, x0)
            )
            conditions = conditions._replace(**seen)
        output = self.denoise(params, corrupted.x, corrupted.timestep_input, conditions)
        loss = self.process.loss(output, corrupted)
        valid = rows["valid"].astype(jnp.float32)
        bins = jnp.minimum((t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1)
        sums = {"loss": (jnp.sum(loss * valid), jnp.sum(valid))}
        for i in range(TIME_BINS):
            inside = valid * (bins == i)
            sums[f"loss_bin{i}"] = (jnp.sum(loss * inside), jnp.sum(inside))
        return sums

    def preview(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batch: Batch,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """Samples for the batch's first captions; in super-resolution, of its shrunk pictures."""
        (rows,) = batch.values()
        rows = self._encoded(frozen, jax.tree.map(lambda x: x[: self.previews], rows))
        n = rows["sizes"].shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        encoded = self.encode(frozen, rows, jnp.zeros((n,), bool))
        x0 = self.clean(frozen, rows, key)
        shape = x0.shape[1], x0.shape[2]
        low = self.low.from_clean(rows, x0) if self.low else None
        drawn = self.generate(params, frozen, encoded, rows["sizes"], keys, shape, low=low)
        if low is None or not self.low:
            return {"samples": drawn}
        return {"samples": drawn, "low_resolution": to_pixels(self.low.to_image(frozen, low))}

    def finish(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        state: Params,
        batches: Iterable[Batch],
    ) -> Params:
        return state

    def generate(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        encoded: Mapping[str, Encoded],
        sizes: Int[Array, "b 6"],
        keys: Any,
        shape: tuple[int, int],
        *,
        negative: Mapping[str, Encoded] | None = None,
        sampling: Sampling | None = None,
        low: Data | None = None,
        decode: bool = True,
    ) -> UInt8[Array, "b H W 3"] | Data:
        """Pictures; row i depends on its text and ``keys[i]`` alone, not on its neighbours.

        ``shape`` is height and width in the generator's space; ``negative`` (default: the null
        condition) is what guidance leads away from; ``low`` is what a super-resolution stage
        enlarges, pictures in [-1, 1] or tokens. Without ``decode`` the data of the generator's
        space, its tokens for instance.
        """
        sampling = sampling or self.sampling
        b = sizes.shape[0]
        negative = negative or {name: _rows(null, b) for name, null in self.null.items()}
        if (low is None) != (self.low is None):
            raise ValueError("low-resolution pictures are for super-resolution stages")
        seen: dict[str, Array] = {}
        if self.low and low is not None:
            seen = self.low.sampling_conditions(fold_in(keys, _LOW), low)

        def network(x: Array, t: Array, by: Conditions) -> Array:
            return self.denoise(params, x, self.process.timestep_input(t), by)

        scale = sampling.guidance_scale
        denoise = guided(
            network,
            self.condition(params, encoded, sizes)._replace(**seen),
            # At 1 the other condition has no say: half the work.
            None if scale == 1 else self.condition(params, negative, sizes)._replace(**seen),
            rising(scale) if sampling.guidance_ramp else scale,
            sampling.guidance_rescale,
            self.process.split,
        )
        start = self.process.prior(keys, (b, *self.codec.row(*shape)))
        x0 = sample(
            denoise,
            self.process,
            sampling.sampler,
            time_grid(self.process, sampling.steps, sampling.spacing),
            keys,
            start,
            transform=sampling.transform,
        )
        return to_pixels(self.codec.decode(frozen.get("codec", {}), x0)) if decode else x0

    def latents(
        self, frozen: Mapping[str, Params], image: UInt8[Array, "b H W 3"]
    ) -> dict[str, Array]:
        """Moments and, where tokens are enlarged, those."""
        x = to_unit_range(image)
        found = {"moments": self.codec.moments(frozen.get("codec", {}), x)}
        return found | (self.low.latents(frozen, x) if self.low else {})

    def cached(
        self, frozen: Mapping[str, Params], image: UInt8[Array, "b H W 3"]
    ) -> dict[str, Array]:
        """What a cache holds of pictures: their latents; in pixel space the pictures, decoded."""
        return self.latents(frozen, image) if "codec" in self.frozen else {"image": image}

    def _encoded(self, frozen: Mapping[str, Params], rows: Batch) -> Batch:
        """The rows with their latents, computed where no cache has given them."""
        return rows if "moments" in rows else rows | self.latents(frozen, rows["image"])

    def clean(self, frozen: Mapping[str, Params], rows: Batch, key: jax.Array) -> Array:
        """The generator's clean data, from moments."""
        codec = frozen.get("codec", {})
        return jax.lax.stop_gradient(self.codec.sample(codec, rows["moments"], key))

    def _window(self, key: jax.Array, x0: Array) -> Array:
        return self.low.window(jax.random.fold_in(key, _LOW + 1), x0) if self.low else x0

    def encode(
        self, frozen: Mapping[str, Params], rows: Batch, drop: Bool[Array, "b"]
    ) -> dict[str, Encoded]:
        """Every encoder's states, computed or cached; rows in ``drop`` get its null condition."""
        cached, encoded = rows.get("text", {}), {}
        for name, encoder in self.encoders.items():
            if name in cached:
                text = Encoded(**cached[name])
            else:
                tokens = rows["tokens"][name]
                text = encoder.apply(frozen[name], tokens["ids"], tokens["mask"])
            encoded[name] = jax.tree.map(
                lambda x, null: jnp.where(drop.reshape(-1, *(1,) * (x.ndim - 1)), null, x),
                jax.lax.stop_gradient(text),
                self.null[name],
            )
        return encoded

    def condition(
        self, params: Params, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"]
    ) -> Conditions:
        """The trainable conditioner, in the compute dtype."""
        network = cast(subtree(params, "conditioner"), self.compute_dtype)
        return Conditions(*self.conditioner(network, cast(encoded, self.compute_dtype), sizes))

    def denoise(
        self, params: Params, x: Data, told: Float[Array, "b"], by: Conditions
    ) -> Float[Array, "b h w o"]:
        """One call of the denoiser in the compute dtype; fp32 out."""
        network, x = cast((subtree(params, "denoiser"), x), self.compute_dtype)
        if by.spatial is not None:
            x = jnp.concatenate([x, by.spatial.astype(x.dtype)], axis=-1)
        seen: dict[str, Any] = {"level": by.level, "low": by.low}
        seen = {name: value for name, value in seen.items() if value is not None}
        output = self.denoiser(network, x, told, by.context, by.mask, by.vector, **seen)
        return output.astype(jnp.float32)


def _rows(null: Encoded, n: int) -> Encoded:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), null)
