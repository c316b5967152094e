"""The one generation task: codec x process x denoiser x conditioning.

    pixels --codec--> x0 --process--> (x_t, t, target) --denoiser(x_t, t | text, sizes)--> loss

Latent diffusion, pixel diffusion and masked generation differ only in the parts handed in. The
codec and the text encoders are frozen; the denoiser and the conditioner (projections of the
encoders' states) train. A super-resolution stage is told a low-resolution picture besides.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params, nest, subtree
from emu_jax.process.guidance import dynamic_threshold, guided, rising, static_clip
from emu_jax.process.noise import fold_in
from emu_jax.process.protocol import Data, Process
from emu_jax.process.sampling import sample, time_grid
from emu_jax.tasks.base import Batch, Frozen, Group, Metrics, cast, to_pixels, to_unit_range
from emu_jax.tasks.codecs import Codec
from emu_jax.tasks.upsampling import LowResolution
from emu_jax.text.encoder import TextEncoder

TIME_BINS = 5
_LOW = 2**31  # folded into a picture's key for its low-resolution noise: no sampler has such a step


THRESHOLDS = {"none": None, "static": static_clip, "dynamic": dynamic_threshold}


class Conditions(NamedTuple):
    """What the denoiser is told beside x and t; every leaf has the batch in front."""

    context: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]
    vector: Float[Array, "b p"] | None
    spatial: Float[Array, "b h w s"] | None = None
    level: Float[Array, "b"] | None = None


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: a sampler, its steps and their spacing, classifier-free guidance.

    ``guidance_ramp``: guidance rises from none to its scale in the course of sampling.
    ``threshold`` holds every predicted x0 within the range of pixels (``process.guidance``).
    """

    sampler: Any
    steps: int = 25
    spacing: Literal["trailing", "uniform", "karras"] = "trailing"
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    guidance_ramp: bool = False
    threshold: Literal["none", "static", "dynamic"] = "none"

    def __post_init__(self):
        if self.threshold not in THRESHOLDS:
            raise UserError(
                f"sampling.threshold is {', '.join(THRESHOLDS)}, not {self.threshold!r}."
            )


@dataclass(frozen=True)
class Generation:
    """Text to picture.

    ``null`` holds each encoder's null condition, one row; training replaces a picture's text by it
    at rate ``drop_text``, sampling uses it where there is no negative prompt. ``stream`` names the
    batch's stream. ``low`` makes it a super-resolution stage, in pixels.
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
    low: LowResolution | None = None

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
        rows = batch[self.stream]
        k_latent, k_drop, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(frozen, rows, k_latent))
        drop = jax.random.bernoulli(k_drop, self.drop_text, (x0.shape[0],))
        corrupted = self.process.corrupt(k_process, x0)
        conditions = self.condition(params, self.encode(frozen, rows, drop), rows["sizes"])
        if self.low:
            spatial, level = self.low.example(jax.random.fold_in(key, _LOW), x0)
            conditions = conditions._replace(spatial=spatial, level=level)
        output = self.denoise(params, corrupted.x, corrupted.told, conditions)
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
        k_latent, k_time, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(frozen, rows, k_latent))
        n = x0.shape[0]
        t = (jax.random.permutation(k_time, n) + 0.5) / n
        corrupted = self.process.corrupt(k_process, x0, t)
        encoded = self.encode(frozen, rows, jnp.zeros((n,), bool))
        conditions = self.condition(params, encoded, rows["sizes"])
        if self.low:
            spatial, level = self._see(jax.random.fold_in(key, _LOW), self.low.shrink(x0))
            conditions = conditions._replace(spatial=spatial, level=level)
        output = self.denoise(params, corrupted.x, corrupted.told, conditions)
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
        rows = jax.tree.map(lambda x: x[: self.previews], rows)
        n = rows["sizes"].shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        encoded = self.encode(frozen, rows, jnp.zeros((n,), bool))
        x0 = self.clean(frozen, rows, key)
        shape = x0.shape[1], x0.shape[2]
        low = self.low.shrink(x0) if self.low else None
        drawn = self.generate(params, frozen, encoded, rows["sizes"], keys, shape, low=low)
        if low is None or not self.low:
            return {"samples": drawn}
        return {"samples": drawn, "low_resolution": to_pixels(self.low.enlarge(low))}

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
        low: Float[Array, "b h w 3"] | None = None,
    ) -> UInt8[Array, "b H W 3"]:
        """Pictures; row i depends on its text and ``keys[i]`` alone, not on its neighbours.

        ``shape`` is height and width in the generator's space; ``negative`` (default: the null
        condition) is what guidance leads away from; ``low`` are the pictures, in [-1, 1], that a
        super-resolution stage enlarges.
        """
        sampling = sampling or self.sampling
        b = sizes.shape[0]
        negative = negative or {name: _rows(null, b) for name, null in self.null.items()}
        if (low is None) != (self.low is None):
            raise ValueError("low-resolution pictures are for super-resolution stages")
        seen: dict[str, Array] = {}
        if low is not None:
            seen["spatial"], seen["level"] = self._see(fold_in(keys, _LOW), low)

        def network(x: Array, t: Array, by: Conditions) -> Array:
            return self.denoise(params, x, self.process.told(t), by)

        scale = sampling.guidance_scale
        denoise = guided(
            network,
            self.condition(params, encoded, sizes)._replace(**seen),
            # At 1 the other condition has no say: half the work.
            None if scale == 1 else self.condition(params, negative, sizes)._replace(**seen),
            rising(scale) if sampling.guidance_ramp else scale,
            sampling.guidance_rescale,
        )
        start = self.process.prior(keys, (b, *self.codec.row(*shape)))
        x0 = sample(
            denoise,
            self.process,
            sampling.sampler,
            time_grid(self.process, sampling.steps, sampling.spacing),
            keys,
            start,
            transform=THRESHOLDS[sampling.threshold],
        )
        return to_pixels(self.codec.decode(frozen.get("codec", {}), x0))

    def clean(self, frozen: Mapping[str, Params], rows: Batch, key: jax.Array) -> Array:
        """The generator's clean data, from pixels or from cached moments."""
        codec = frozen.get("codec", {})
        moments = rows.get("moments")
        if moments is None:
            moments = self.codec.moments(codec, to_unit_range(rows["image"]))
        return jax.lax.stop_gradient(self.codec.sample(codec, moments, key))

    def _window(self, key: jax.Array, x0: Array) -> Array:
        return self.low.window(jax.random.fold_in(key, _LOW + 1), x0) if self.low else x0

    def _see(self, keys: jax.Array, low: Array) -> tuple[Array, Array]:
        assert self.low is not None
        return self.low.augment(keys, low, self.low.level)

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
        text = by.context, by.mask, by.vector
        if by.level is None:
            return self.denoiser(network, x, told, *text).astype(jnp.float32)
        return self.denoiser(network, x, told, *text, level=by.level).astype(jnp.float32)


def _rows(null: Encoded, n: int) -> Encoded:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), null)
