"""The one generation task: codec x process x denoiser x conditioning.

    image --codec--> x0 --process--> (x_t, t, target) --denoiser(x_t, t | conditions)--> loss

Latent diffusion, pixel diffusion and masked generation differ only in the parts handed in. The
codec and the text encoders are frozen; the denoiser and the conditioner (projections of the
encoders' outputs) train. A super-resolution stage is conditioned on a low-resolution image as well,
other generators on images of :mod:`emu_jax.tasks.image_conditions`.

Sampling is composed of methods that other tasks also call separately:

    conditions = task.condition(params, encoded, sizes)
    denoise    = task.guided(params, conditions, null_conditions)   # classifier-free guidance
    x0         = task.sample(denoise, keys, shape)                  # the sampling loop
    image      = task.decode(frozen, x0)                            # floats, differentiable
    pixels     = to_pixels(image)                                   # rounding, at the very end
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.control import PREFIX as CONTROL
from emu_jax.nn.functional import Network, Params, nest, subtree
from emu_jax.process.guidance import Denoise
from emu_jax.process.noise import fold_in
from emu_jax.process.protocol import Data, Process
from emu_jax.process.sampling import sample, time_grid
from emu_jax.tasks.base import (
    Context,
    Latents,
    Loss,
    Rows,
    RowSpec,
    Task,
    cast,
    encoded_text,
    to_pixels,
    to_unit_range,
)
from emu_jax.tasks.codecs import Codec
from emu_jax.tasks.image_conditions import Control, Editing, Images, Spatial, blank, dropped
from emu_jax.tasks.sampling import Conditions, Sampling, Start
from emu_jax.tasks.upsampling import Low
from emu_jax.text.encoder import TextEncoder, blank_output, null_output

TIME_BINS = 5
# Folded into an image's key, for the noise of its low-resolution image and for the latents of its
# start image: no sampler has such steps.
_LOW = 2**31
_START = 2**31 + 2


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """Text to image.

    ``null`` holds each encoder's null output, one row, which :meth:`prepare` computes. Training
    replaces an image's text by it at rate ``drop_text``; sampling uses it where there is no
    negative prompt. ``stream`` is the data stream that the loss reads. ``low`` makes the task a
    super-resolution stage; ``control`` and ``spatial`` condition it on images that belong to an
    image, the names ``further``. ``previews`` is the number of images in a preview.
    """

    denoiser: Network
    conditioner: Network
    codec: Codec
    process: Process
    encoders: Mapping[str, TextEncoder]
    sampling: Sampling
    null: Mapping[str, Encoded] | None = None
    drop_text: float = 0.1
    compute_dtype: Any = jnp.float32
    stream: str = "train"
    previews: int = 16
    low: Low | None = None
    control: Control | None = None
    spatial: Spatial | None = None

    @property
    def streams(self) -> dict[str, RowSpec]:
        return {self.stream: RowSpec(self.encoders, self._cacheable(), self.further)}

    @property
    def further(self) -> tuple[str, ...]:
        """The names of the images that condition it."""
        spatial = self.spatial.further if self.spatial else ()
        return (*spatial, self.control.hint) if self.control else spatial

    @property
    def generator(self) -> "Generation":
        return self

    @property
    def sampling_dtype(self) -> Any:
        """The compute dtype, to which every use of a parameter casts it."""
        return self.compute_dtype

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        first, second = jax.random.split(key)
        control = self.control.network.init(jax.random.fold_in(key, 2)) if self.control else {}
        return {
            **nest("denoiser", self.denoiser.init(first)),
            **nest("conditioner", self.conditioner.init(second)),
            **nest(CONTROL, control),
        }, {}

    def prepare(self, frozen: Mapping[str, Params] | None) -> Self:
        """Computes the null outputs of the text encoders."""
        null = {
            name: blank_output(encoder) if frozen is None else null_output(encoder, frozen[name])
            for name, encoder in self.encoders.items()
        }
        return replace(self, null=null)

    # Training ------------------------------------------------------------------------------------

    def loss(self, group: str, context: Context) -> Loss:
        """Mean of the process's weighted loss over the batch."""
        losses = self.losses(context, context.batch[self.stream])
        return Loss(jnp.mean(losses), context.state)

    def losses(
        self, context: Context, rows: Rows, conditions: Conditions | None = None
    ) -> Float[Array, " b"]:
        """The process's weighted loss of each row.

        ``conditions`` are the conditioner's output for the rows' texts; by default that of
        :meth:`condition`, with the text dropped at rate ``drop_text``.
        """
        rows, key = self.with_latents(context.frozen, rows), context.key
        k_latent, k_drop, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(context.frozen, rows, k_latent))
        corrupted = self.process.corrupt(k_process, x0)
        if conditions is None:
            drop = jax.random.bernoulli(k_drop, self.drop_text, (x0.shape[0],))
            encoded = self.encode(context.frozen, rows, drop)
            conditions = self.condition(context.params, encoded, rows["sizes"])
        if self.low:
            low = self.low.from_clean(rows, x0)
            conditions = conditions | self.low.training_conditions(
                jax.random.fold_in(key, _LOW), low
            )
        if self.further:
            given = self.given(context.params, context.frozen, rows["further"])
            conditions = conditions | dropped(self.spatial, jax.random.fold_in(key, _LOW), given)
        output = self.denoise(context.params, corrupted.x, corrupted.timestep_input, conditions)
        return self.process.loss(output, corrupted)

    def validate(self, context: Context) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Loss with the text at stratified times: the mean, and by bin of t (0 = clean)."""
        rows, key = self.with_latents(context.frozen, context.batch[self.stream]), context.key
        k_latent, k_time, k_process = jax.random.split(key, 3)
        x0 = self._window(key, self.clean(context.frozen, rows, k_latent))
        n = x0.shape[0]
        t = (jax.random.permutation(k_time, n) + 0.5) / n
        corrupted = self.process.corrupt(k_process, x0, t)
        encoded = self.encode(context.frozen, rows)
        conditions = self.condition(context.params, encoded, rows["sizes"])
        if self.low:
            low = self.low.from_clean(rows, x0)
            conditions |= self.low.sampling_conditions(jax.random.fold_in(key, _LOW), low)
        if self.further:
            conditions |= self.given(context.params, context.frozen, rows["further"])
        output = self.denoise(context.params, corrupted.x, corrupted.timestep_input, conditions)
        loss = self.process.loss(output, corrupted)
        valid = rows["valid"].astype(jnp.float32)
        bins = jnp.minimum((t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1)
        sums = {"loss": (jnp.sum(loss * valid), jnp.sum(valid))}
        for i in range(TIME_BINS):
            inside = valid * (bins == i)
            sums[f"loss_bin{i}"] = (jnp.sum(loss * inside), jnp.sum(inside))
        return sums

    def preview(self, context: Context) -> dict[str, jax.Array]:
        """Images for the batch's first captions, and the images that condition them; in
        super-resolution, from its shrunk images.
        """
        frozen, key = context.frozen, context.key
        rows = jax.tree.map(lambda x: x[: self.previews], context.batch[self.stream])
        rows = self.with_latents(frozen, rows)
        n = rows["sizes"].shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
        encoded = self.encode(frozen, rows)
        x0 = self.clean(frozen, rows, key)
        shape = x0.shape[1], x0.shape[2]
        low = self.low.from_clean(rows, x0) if self.low else None
        images = rows.get("further") if self.further else None
        drawn = self.generate(
            context.params, frozen, encoded, rows["sizes"], keys, shape, low=low, images=images
        )
        if images:
            return {"samples": drawn, **{name: _shown(image) for name, image in images.items()}}
        if low is None or not self.low:
            return {"samples": drawn}
        return {"samples": drawn, "low_resolution": to_pixels(self.low.to_image(frozen, low))}

    # Sampling ------------------------------------------------------------------------------------

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
        start: Start | None = None,
        images: Images | None = None,
        decode: bool = True,
    ) -> UInt8[Array, "b H W 3"] | Float[Array, "b *o"] | Int[Array, "b *o"]:
        """Images; row i depends on its text and ``keys[i]`` only, not on the other rows.

        ``shape`` is height and width in the generator's space. ``negative`` (default: the null
        output) is the text that guidance leads away from. ``low`` is what a super-resolution stage
        enlarges, images in [-1, 1] or tokens. ``start`` is the result of :meth:`start_of`.
        ``images`` are those of :attr:`further`; a ControlNet without its hint is left out.
        ``decode`` False returns the data of the generator's space, for instance tokens.
        """
        given: dict[str, Any] = dict(negative=negative, low=low, images=images)
        inputs = params, frozen, encoded, sizes, keys, sampling
        conditions, null = self.both_conditions(*inputs, **given)
        denoise = self.guided(params, conditions, null, sampling)
        x0 = self.sample(denoise, keys, shape, sampling, start)
        return to_pixels(self.decode(frozen, x0)) if decode else x0

    def both_conditions(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        encoded: Mapping[str, Encoded],
        sizes: Int[Array, "b 6"],
        keys: Any,
        sampling: Sampling | None = None,
        *,
        negative: Mapping[str, Encoded] | None = None,
        low: Data | None = None,
        images: Images | None = None,
    ) -> tuple[Conditions, Conditions | None]:
        """What :meth:`guided` leads to and what it leads away from, for the inputs of
        :meth:`generate`; the second is None where guidance does not use it.
        """
        sampling = sampling or self.sampling
        if (low is None) != (self.low is None):
            raise ValueError("low-resolution images are for super-resolution stages")
        more: Conditions = {}
        if self.low and low is not None:
            more = self.low.sampling_conditions(fold_in(keys, _LOW), low)
        if images:
            more |= self.given(params, frozen, images)
        conditions = self.condition(params, encoded, sizes) | more
        null = None
        by_image = isinstance(self.spatial, Editing) and sampling.image_guidance_scale != 1
        if sampling.guidance_scale != 1 or by_image:  # The other output is unused at scale 1.
            negative = negative or self.null_rows(sizes.shape[0])
            null = self.condition(params, negative, sizes, "unconditional") | more
        return conditions, null

    def guided(
        self,
        params: Params,
        conditions: Conditions,
        null: Conditions | None,
        sampling: Sampling | None = None,
    ) -> Denoise:
        """``denoise(x, t)`` with the guidance of ``sampling``, away from ``null``."""
        call = partial(self.denoise, params)
        return (sampling or self.sampling).guide(call, self.process, conditions, null, self.spatial)

    def times(self, sampling: Sampling | None = None) -> Float[Array, " n_plus_1"]:
        """The times that sampling visits."""
        sampling = sampling or self.sampling
        return time_grid(self.process, sampling.steps, sampling.spacing)

    def sample(
        self,
        denoise: Denoise,
        keys: Any,
        shape: tuple[int, int],
        sampling: Sampling | None = None,
        start: Start | None = None,
    ) -> Data:
        """Clean data of ``shape``, sampled from the process's prior or from ``start``, which has
        the same shape; one row per key.
        """
        sampling = sampling or self.sampling
        x, times, known = self.origin(keys, shape, sampling, start)
        return sample(
            denoise,
            self.process,
            sampling.sampler,
            times,
            keys,
            x,
            transform=sampling.transform,
            **known,
        )

    def origin(
        self, keys: Any, shape: tuple[int, int], sampling: Sampling, start: Start | None = None
    ) -> tuple[Data, Float[Array, " n_plus_1"], dict[str, Array]]:
        """Where sampling starts: x, the times that it visits, and what it keeps, as arguments of
        :func:`emu_jax.process.sampling.sample`.
        """
        times, known = self.times(sampling), {}
        x = self.process.prior(keys, (len(keys), *self.codec.row(*shape)))
        if start:
            keep = start.keep.reshape(*start.keep.shape, *(1,) * (x.ndim - start.keep.ndim))
            known = dict(known=start.x0, known_mask=keep)
            if start.skip:  # The prior's own noise: the same seed gives a related image.
                times = times[start.skip :]
                x = self.process.sample_forward(keys, start.x0, times[0])
        return x, times, known

    def start_of(
        self,
        frozen: Mapping[str, Params],
        image: UInt8[Array, "b H W 3"],
        keep: Float[Array, "b H W"],
        keys: Any,
        skip: int = 0,
    ) -> Start:
        """The start that an image is; ``keep`` is the share of each pixel that stays."""
        codec, factor = frozen.get("codec", {}), self.codec.factor
        moments = self.codec.moments(codec, to_unit_range(image))
        rows = jax.vmap(lambda row, key: self.codec.sample(codec, row[None], key)[0])
        b, height, width = keep.shape
        blocks = keep.reshape(b, height // factor, factor, width // factor, factor)
        return Start(rows(moments, fold_in(keys, _START)), jnp.mean(blocks, (2, 4)), skip)

    def decode(self, frozen: Mapping[str, Params], x0: Data) -> Float[Array, "b H W 3"]:
        """Images in [-1, 1], differentiable in x0 where that is continuous."""
        return self.codec.decode(frozen.get("codec", {}), x0)

    # Inputs --------------------------------------------------------------------------------------

    def latents(
        self, frozen: Mapping[str, Params], image: UInt8[Array, "b H W 3"]
    ) -> dict[str, Array]:
        """Moments, and the low-resolution tokens if the stage is conditioned on tokens."""
        x = to_unit_range(image)
        found = {"moments": self.codec.moments(frozen.get("codec", {}), x)}
        return found | (self.low.latents(frozen, x) if self.low else {})

    def _cacheable(self) -> Latents:
        """Latents; in pixel space the decoded images themselves."""
        codec, networks = self.frozen.get("codec"), self.low.networks if self.low else ()
        made_from = {"encoder": codec.fingerprint if codec else "none", "dtype": "float32"}
        if codec is None:
            return Latents(lambda frozen, image: {"image": image}, (), made_from)
        for name in networks:
            made_from |= {"low encoder": self.frozen[name].fingerprint}
            made_from |= {"low factor": str(self.low.factor if self.low else 1)}
        return Latents(self.latents, ("codec", *networks), made_from)

    def with_latents(self, frozen: Mapping[str, Params], rows: Rows) -> Rows:
        """The rows with their latents, computed unless a cache has provided them."""
        return rows if "moments" in rows else rows | self.latents(frozen, rows["image"])

    def clean(self, frozen: Mapping[str, Params], rows: Rows, key: jax.Array) -> Data:
        """The generator's clean data x0, a sample from the moments."""
        codec = frozen.get("codec", {})
        return jax.lax.stop_gradient(self.codec.sample(codec, rows["moments"], key))

    def _window(self, key: jax.Array, x0: Data) -> Data:
        return self.low.window(jax.random.fold_in(key, _LOW + 1), x0) if self.low else x0

    def given(self, params: Params, frozen: Mapping[str, Params], images: Images) -> Conditions:
        """What the images of :attr:`further` add to the conditions."""
        found: Conditions = {}
        if self.spatial:
            found |= self.spatial.conditions(self.codec, frozen.get("codec", {}), images)
            found = jax.lax.stop_gradient(found)
        if self.control and self.control.hint in images:
            found |= self.control.conditions(params, images, self.compute_dtype)
        return found

    def blank(self, n: int, height: int, width: int) -> dict[str, Array]:
        """Black images of :attr:`further`."""
        return blank(self.further, n, height, width)

    def encode(
        self, frozen: Mapping[str, Params], rows: Rows, drop: Bool[Array, "b"] | None = None
    ) -> dict[str, Encoded]:
        """Every encoder's output, computed or cached; rows in ``drop`` get its null output."""
        encoded = {
            name: encoded_text(name, encoder, frozen, rows)
            for name, encoder in self.encoders.items()
        }
        if drop is None:
            return encoded
        return jax.tree.map(
            lambda x, null: jnp.where(drop.reshape(-1, *(1,) * (x.ndim - 1)), null, x),
            encoded,
            dict(self.null_outputs),
        )

    @property
    def null_outputs(self) -> Mapping[str, Encoded]:
        """Each encoder's output for no text, one row."""
        if self.null is None:
            raise ValueError("the task has no null conditioning yet: call prepare(frozen) first")
        return self.null

    def null_rows(self, n: int) -> dict[str, Encoded]:
        """The null outputs of n rows."""
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), dict(self.null_outputs)
        )

    def condition(
        self,
        params: Params,
        encoded: Mapping[str, Encoded],
        sizes: Int[Array, "b 6"],
        method: str = "__call__",
    ) -> Conditions:
        """The output of the trainable conditioner, or of one of its methods, in the compute
        dtype.
        """
        network = cast(subtree(params, "conditioner"), self.compute_dtype)
        outputs = self.conditioner(network, cast(encoded, self.compute_dtype), sizes, method=method)
        named = zip(("context", "mask", "vector"), outputs, strict=True)
        return {name: value for name, value in named if value is not None}

    def denoise(
        self,
        params: Params,
        x: Data,
        timestep: Float[Array, "b"],
        conditions: Conditions,
        *,
        attention: bool = False,
    ) -> Any:
        """One evaluation of the denoiser in the compute dtype; the output is fp32. With
        ``attention``, also the attention that each position of its middle block gets.
        """
        network, x = cast((subtree(params, "denoiser"), x), self.compute_dtype)
        inputs: dict[str, Any] = dict(conditions)
        spatial, features = inputs.pop("spatial", None), inputs.pop("control", None)
        if features is not None and self.control:
            inputs["residuals"] = self.control.residuals(params, x, timestep, features, inputs)
        if spatial is not None:
            x = jnp.concatenate([x, spatial.astype(x.dtype)], axis=-1)
        if attention:
            inputs["attention"] = True
        return cast(self.denoiser(network, x, timestep, **inputs), jnp.float32)


def _shown(image: UInt8[Array, "b H W *k"]) -> UInt8[Array, "b H W 3"]:
    """A further image to display: a mask in black and white."""
    if image.ndim == 4:
        return image
    return jnp.repeat(jnp.where(image[..., None] > 0, 255, 0).astype(jnp.uint8), 3, axis=-1)
