"""A trained generator, ready to draw: for the commands and the Python API.

An image depends on its checkpoint, prompt, seed and sampling settings only: not on the batch that
it is drawn in, nor on the number of devices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from emu_jax.assembly.cost import training_flops
from emu_jax.assembly.encoders import make_encoders
from emu_jax.assembly.models import (
    adapts_text,
    open_model,
    split_text_adapter,
    with_adapter,
    with_control,
    with_text_adapter,
)
from emu_jax.assembly.previews import Previews
from emu_jax.assembly.sections.runs import upgrade
from emu_jax.assembly.starting import Start, StartImage, draw_from
from emu_jax.assembly.streams import stream_spec
from emu_jax.assembly.tasks import open_task
from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.checkpoint.safetensors_io import place
from emu_jax.data.mixture import Selection
from emu_jax.data.pipeline import make_stream
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import relaid
from emu_jax.parallel.mesh import images_at_once, sampling_mesh
from emu_jax.parallel.sharding import fetch, process_rows, put_batch, shard_params
from emu_jax.planning.flops import count_flops
from emu_jax.process.noise import fold_in
from emu_jax.process.sampling import State
from emu_jax.tasks.base import Context, Task
from emu_jax.tasks.codecs import CODEBOOK, AutoencoderCodec, TokenCodec
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.image_conditions import require_images
from emu_jax.tasks.stepwise import Unfinished, begin, proceed
from emu_jax.tasks.upsampling import LOW_CODEC
from emu_jax.text.weighting import encode as encode_text
from emu_jax.text.weighting import parse, tokenize
from emu_jax.training.trainer import VALIDATION_SEED

Image = UInt8[np.ndarray, "h w 3"]
Tokens = Int[np.ndarray, "h w"]
Size = tuple[int, int]  # height, width in pixels

_TILE = 1024  # pixels along a side

# The sections of a config on which an image depends.
_DRAWN_BY = (
    *("codec", "low_codec", "low_resolution", "text", "conditioner", "denoiser", "process"),
    *("sampling", "compute_dtype"),
)


class Drawer:
    """Draws from parameters that are handed in, compiled once: a generator in training, say.
    Where several processes share the mesh all must draw, and all get the images.

    ``batch_size`` is rounded up to a multiple of the devices, unless these divide images too
    (:func:`emu_jax.parallel.mesh.sampling_mesh`). ``prompt_weighting`` is the syntax of
    weights in prompts and negative prompts (:mod:`emu_jax.text.weighting`).
    """

    def __init__(
        self,
        task: Task,
        config: ConfigDict,
        mesh: Mesh,
        frozen: Mapping[str, Params],
        batch_size: int = 16,
        prompt_weighting: str = "none",
    ):
        generator = task.generator
        if generator is None:
            raise UserError(f"The task {config.task} draws no images: name a text-to-image model.")
        # Only images above this size are encoded and decoded in tiles.
        tile = max(_TILE, 2 * config.data.image_size)
        codec = generator.codec
        if isinstance(codec, AutoencoderCodec | TokenCodec):
            codec = replace(codec, tile=tile)
        self._generator: Generation = replace(generator, codec=codec)
        self.config, self._task, self._mesh, self._frozen = config, task, mesh, frozen
        self.batch_size = images_at_once(batch_size, mesh)
        self.prompt_weighting = prompt_weighting
        self._generate = jax.jit(self._draw_batch, static_argnames=("decode", "size", "skip"))
        self._begin = jax.jit(self._begin_batch, static_argnames=("size", "skip"))
        self._proceed = jax.jit(self._proceed_batch, static_argnames="skip")

    @property
    def side(self) -> int:
        """Height and width in pixels of the images that it was trained on."""
        return self.config.data.image_size

    @property
    def shapes(self) -> list[Size]:
        """(height, width) in pixels of the images that it was trained on."""
        return stream_spec(self.config).shapes()

    @property
    def multiple(self) -> int:
        """Height and width of an image are multiples of it."""
        return self.codec_factor

    @property
    def codec_factor(self) -> int:
        """Pixels along a side of one position of the data that it draws."""
        return self._generator.codec.factor

    @property
    def input_kind(self) -> str:
        """What a super-resolution stage enlarges, "images" or "tokens"; empty for a generator that
        draws from prompts only.
        """
        return self._generator.low.input_kind if self._generator.low else ""

    @property
    def further(self) -> tuple[str, ...]:
        """The names of the images that condition it beside the prompt."""
        return self._generator.further

    @property
    def hint(self) -> str:
        """The one of them that its ControlNet follows; empty without one."""
        return self._generator.control.hint if self._generator.control else ""

    @property
    def factor(self) -> int:
        """How many times larger a super-resolution stage makes its input."""
        return self._generator.low.factor if self._generator.low else 1

    def draw_with(
        self,
        params: Params,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        low: Sequence[Image | Tokens] | None = None,
        decode: bool = True,
        size: Size | None = None,
        start: Start | None = None,
        *,
        images: Mapping[str, Sequence[Any]] | None = None,
        previews: Previews | None = None,
    ) -> Iterator[Image | Tokens]:
        """One image for each (prompt, seed), in order, as soon as its batch is done.

        ``params`` are the task's. ``low`` are the inputs of a super-resolution stage, all of one
        size: images, or the tokens that another stage has drawn. ``decode`` False yields tokens in
        place of images. ``size`` is that of the images, by default :attr:`side` x :attr:`side`;
        a super-resolution stage enlarges what it gets. ``start`` is an image of this size that all
        of them start from. ``images`` are those of :attr:`further` by name, one for each prompt, in
        the size of the images. ``previews`` are shown during sampling.

        Raises:
          UserError: a size that the codec or the network does not have, or images are missing.
        """
        require_images(self.further, images or {})
        skip = start.skipped(self._generator.sampling.steps) if start else 0
        if start:
            size = start.size
        if size:
            require_multiples(size, self.codec_factor)
        for first in range(0, len(prompts), self.batch_size):
            own = slice(first, first + self.batch_size)
            rows = list(zip(prompts[own], seeds[own], strict=True))
            full = rows + [rows[-1]] * (self.batch_size - len(rows))
            batch = {
                "tokens": self._tokens([prompt for prompt, _ in full]),
                "negative": self._tokens([negative] * len(full)) if negative else {},
                "seed": np.array([seed for _, seed in full], np.uint32),
            }
            if low is not None:
                given = list(low[own])
                batch["low"] = np.stack(given + [given[-1]] * (self.batch_size - len(rows)))
            if start:
                batch["start"] = np.stack([start.image] * self.batch_size)
                batch["keep"] = np.stack([start.keep] * self.batch_size)
            for name, every in (images or {}).items():
                given = list(every[own])
                given += [given[-1]] * (self.batch_size - len(rows))
                batch.setdefault("images", {})[name] = np.stack(given)
            here = process_rows(self.batch_size, self._mesh)
            batch = put_batch(jax.tree.map(lambda x, here=here: x[here], batch), self._mesh)
            how: dict[str, Any] = dict(size=size, skip=skip)
            if previews:
                drawn = self._watched(params, batch, decode, previews, len(rows), **how)
            else:
                drawn = self._generate(params, self._frozen, batch, decode=decode, **how)
            yield from _fetched(drawn)[: len(rows)]

    def _watched(
        self,
        params: Params,
        batch: Mapping[str, Any],
        decode: bool,
        previews: Previews,
        rows: int,
        size: Size | None,
        skip: int,
    ) -> jax.Array:
        """What ``_generate`` returns, drawn in pieces; ``previews`` has its first ``rows``."""
        unfinished, keys = self._begin(params, self._frozen, batch, size=size, skip=skip)
        steps = self._generator.sampling.steps - skip
        for first, last in previews.pieces(steps):
            given = params, self._frozen, unfinished, keys, first, last
            state, x0, image = self._proceed(*given, skip=skip)
            unfinished = unfinished._replace(state=state)
            if last < steps:
                previews.show(last, steps, list(_fetched(image)[:rows]))
        return image if decode else x0

    def _tokens(self, texts: list[str]) -> dict[str, Any]:
        return tokenize(self._generator.encoders, texts, self.prompt_weighting)

    def _draw_batch(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        batch: Mapping[str, Any],
        decode: bool,
        size: Size | None,
        skip: int,
    ) -> jax.Array:
        given, more = self._inputs(frozen, batch, size, skip)
        params = self._task.generator_params(params, frozen)
        return self._generator.generate(params, frozen, *given, **more, decode=decode)

    def _begin_batch(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        batch: Mapping[str, Any],
        size: Size | None,
        skip: int,
    ) -> tuple[Unfinished, jax.Array]:
        given, more = self._inputs(frozen, batch, size, skip)
        params = self._task.generator_params(params, frozen)
        return begin(self._generator, params, frozen, *given, **more), given[2]

    def _proceed_batch(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        unfinished: Unfinished,
        keys: jax.Array,
        first: int,
        last: int,
        skip: int,
    ) -> tuple[State, jax.Array, jax.Array]:
        params = self._task.generator_params(params, frozen)
        return proceed(self._generator, params, frozen, unfinished, keys, first, last, skip)

    def _inputs(
        self, frozen: Mapping[str, Params], batch: Mapping[str, Any], size: Size | None, skip: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``Generation.generate`` for a batch."""
        task, side = self._generator, self.side

        def encode(tokens: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: encode_text(task.encoders[name], frozen[name], rows, self.prompt_weighting)
                for name, rows in tokens.items()
            }

        keys = jax.vmap(jax.random.key)(batch["seed"])
        image_size = size or (side, side)
        height, width = (pixels // task.codec.factor for pixels in image_size)
        low = None
        if "low" in batch:
            assert task.low is not None, "only a super-resolution stage has an input"
            low = task.low.encode(frozen, batch["low"])
            height, width = (n * task.low.scale // task.codec.factor for n in low.shape[1:3])
            keys = fold_in(keys, side)  # other noise than the image was drawn from
        start = None
        if "start" in batch:
            start = task.start_of(frozen, batch["start"], batch["keep"], keys, skip)
        sizes = np.array([*image_size, 0, 0, *image_size])
        sizes = jax.numpy.tile(sizes, (self.batch_size, 1))
        given = (encode(batch["tokens"]), sizes, keys, (height, width))
        negative = encode(batch["negative"]) or None
        return given, dict(negative=negative, low=low, start=start, images=batch.get("images"))


class Generator(Drawer):
    """What a run's folder, ``DIR@step``, an exported model or builtin:NAME draws.

    ``adapter`` is a file in a public layout that is merged into it and into its text encoders,
    ``adapter_scale`` times. ``text_adapter`` is a file of text adapters; ``checkpoint`` may name
    one too, ``MODEL@FILE``. ``eta`` replaces their share. ``control`` is ``MODEL[@strength]``, a
    ControlNet that is added (:func:`emu_jax.assembly.models.with_control`). ``prompt_weighting`` is
    that of :class:`Drawer`.
    ``changes`` override the sampling settings of its config (steps, guidance_scale, sampler, ...).
    ``fingerprints`` are those of its own weights and of every frozen network. ``chosen`` is the
    step that the run chose when it ended, and why; None where it chose none.
    """

    @blaming("checkpoint")
    def __init__(
        self,
        checkpoint: str,
        batch_size: int = 16,
        adapter: str = "",
        adapter_scale: float = 1.0,
        text_adapter: str = "",
        eta: float | None = None,
        control: str = "",
        prompt_weighting: str = "none",
        **changes: Any,
    ):
        parse("", prompt_weighting)  # before anything is read
        checkpoint, named = split_text_adapter(checkpoint)
        model, texts = open_model(checkpoint), {}
        if adapter:
            encoders = make_encoders(ConfigDict(model.config.get("text", {})))
            model, texts = with_adapter(model, adapter, adapter_scale, encoders)
        if text_adapter or named:
            model = with_text_adapter(model, text_adapter or named)
        if control:
            model = with_control(model, control)
        config = ConfigDict(model.config)
        upgrade(config)
        if "sampling" not in config:
            task = config.get("task")
            raise UserError(f"{checkpoint} is not a text-to-image generator: its task is {task!r}.")
        if eta is not None:
            if not adapts_text(config):
                raise UserError(f"{checkpoint} has no text adapter, of which eta is the share.")
            config.adapter.eta = eta
        config.sampling.update({k: v for k, v in changes.items() if v is not None})
        # Of several processes each draws by itself, with its own devices.
        mesh = sampling_mesh(batch_size, jax.local_devices())
        task, frozen = open_task(config, mesh, adapters=texts)
        super().__init__(task, config, mesh, frozen, batch_size, prompt_weighting)
        self.step, self.chosen = model.meta.get("step"), model.meta.get("chosen")
        self.fingerprints = {"weights": model.fingerprint} | {
            name: network.fingerprint for name, network in task.frozen.items()
        }
        wanted = jax.eval_shape(task.init, jax.random.key(0))[0]
        found = relaid(model.params, wanted)
        require_fit(found, wanted, checkpoint)
        params = ((path, found[path]) for path in wanted if path in found)
        self._params = place(params, shard_params(wanted, mesh), task.sampling_dtype)

    def draw(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        negative: str = "",
        size: Size | None = None,
        start: StartImage | None = None,
        *,
        images: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Image]:
        """One image for each prompt; ``seeds`` are 0, 1, ... by default; ``size`` is (height,
        width). ``start`` is an image to start from; ``images`` are those of :meth:`draw_with`.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        own = (seeds or range(len(prompts)), negative, size)
        return list(draw_from(self, start, prompts, *own, images=images))

    def draw_each(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        low: Sequence[Image | Tokens] | None = None,
        decode: bool = True,
        size: Size | None = None,
        start: Start | None = None,
        *,
        images: Mapping[str, Sequence[Any]] | None = None,
        previews: Previews | None = None,
    ) -> Iterator[Any]:
        """:meth:`draw_with` with its own parameters: one image at a time."""
        given = prompts, seeds, negative, low, decode, size, start
        return self.draw_with(self._params, *given, images=images, previews=previews)

    @property
    def recipe(self) -> dict[str, Any]:
        """What an image depends on beside prompt, negative prompt, seed and size. Networks are
        known by their fingerprints, wherever they lie.
        """
        adapted = ("adapter",) if adapts_text(self.config) else ()
        adapted += ("control",) if self.hint else ()
        adapted += ("spatial",) if self._generator.spatial else ()
        parts = {name: self.config.get(name) for name in (*_DRAWN_BY, *adapted)}
        tokenizers = {
            name: encoder.tokenizer_fingerprint
            for name, encoder in self._generator.encoders.items()
        }
        # Only where it is set: files of older versions keep their names.
        weighting = self.prompt_weighting
        return ({} if weighting == "none" else {"prompt_weighting": weighting}) | {
            "parts": {name: _without_paths(part) for name, part in parts.items()},
            "image_size": self.side,
            "weights": dict(self.fingerprints),
            "tokenizers": tokenizers,
        }

    def follows(self, other: "Generator") -> bool:
        """Whether it can read what ``other`` draws: images, or tokens of the same codebook."""
        if self.input_kind == "images":
            return True
        codes = other._frozen.get("codec", {}).get(CODEBOOK)
        return codes is not None and np.array_equal(codes, self._frozen[LOW_CODEC][CODEBOOK])

    def costs(self) -> dict[str, float]:
        """Number of parameters, FLOPs of a training step per image, denoiser evaluations per drawn
        image, and FLOPs of these evaluations.
        """
        task = self._generator
        side, key = self.side // task.codec.factor, jax.random.key(0)
        low = task.low.blank(1, self.side) if task.low else None
        more = task.low.sampling_conditions(key, low) if task.low and low is not None else {}
        images = task.blank(1, self.side, self.side)

        def call(params: Params, key: jax.Array, t: jax.Array) -> jax.Array:
            sizes = jax.numpy.zeros((1, 6), np.int32)
            conditions = task.condition(params, task.null_rows(1), sizes) | more
            conditions |= task.given(params, self._frozen, images)
            x = task.process.prior(key, (1, *task.codec.row(side, side)))
            return task.denoise(params, x, t, conditions)

        t = jax.ShapeDtypeStruct((1,), np.float32)
        params = self._task.generator_params(self._params, self._frozen)
        return {
            "parameters": sum(value.size for value in self._params.values()),
            "training_flops": training_flops(self.config, self._task, self._frozen, self._mesh),
            "evaluations": task.sampling.calls,
            "flops": task.sampling.calls * count_flops(call, params, key, t),
        }

    def loss(self, selection: Selection) -> float:
        """The validation loss on some images: the same noise and timesteps for every model."""
        ((stream, rows),) = self._generator.streams.items()
        spec = stream_spec(
            self.config,
            stream,
            batch_size=self.batch_size,
            seed=0,
            sequential=True,
            flip=False,
            crop="centre",
            workers=0,
            further=rows.further,
            columns=rows.columns,
        )
        tokenize = {name: encoder.tokenize for name, encoder in rows.encoders.items()}
        validate = jax.jit(self._generator.validate)
        params = self._task.generator_params(self._params, self._frozen)
        total = count = 0.0
        for index, batch in enumerate(make_stream(spec, [selection], tokenize)):
            key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), index)
            batch = put_batch({stream: batch}, self._mesh)
            sums = validate(Context(params, self._frozen, {}, batch, key))
            total, count = total + float(sums["loss"][0]), count + float(sums["loss"][1])
        return total / count


def _fetched(x: jax.Array) -> np.ndarray:
    """All of an array, also where other processes have a part of it."""
    return np.asarray(x if x.is_fully_addressable else fetch(x))


def require_multiples(size: Size, factor: int) -> None:
    """Raises a UserError for an image size whose sides are not multiples of ``factor``."""
    if min(size) < 1 or any(pixels % factor for pixels in size):
        raise UserError(
            f"An image of {size[1]} x {size[0]} pixels does not fit this model: use multiples of "
            f"{factor} for width and height."
        )


def _without_paths(part: Any) -> Any:
    """A section without its keys ``path``, at any depth."""
    if isinstance(part, ConfigDict | dict):
        return {name: _without_paths(part[name]) for name in part if name != "path"}
    return part
