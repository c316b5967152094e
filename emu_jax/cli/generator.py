"""A trained generator, ready to draw: what ``sample`` and ``compare`` share.

A picture depends on its checkpoint, prompt, seed and sampling settings alone: not on the batch it
was drawn in, nor on the number of devices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.checkpoint.safetensors_io import place
from emu_jax.cli import parts
from emu_jax.cli.cost import training_flops
from emu_jax.cli.encoders import null_condition
from emu_jax.cli.models import open_model, with_adapter
from emu_jax.data.mixture import Part
from emu_jax.data.pipeline import make_stream
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import relaid
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.parallel.sharding import put_batch, shard_params
from emu_jax.planning.flops import count_flops
from emu_jax.process.noise import fold_in
from emu_jax.tasks.base import Task
from emu_jax.tasks.codecs import CODEBOOK
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.upsampling import LOW_CODEC
from emu_jax.training.trainer import VALIDATION_SEED

Shown = UInt8[np.ndarray, "h w 3"] | Int[np.ndarray, "h w"]


class Drawer:
    """Draws from parameters that are handed in, compiled once: a generator in training, say."""

    def __init__(
        self,
        task: Generation,
        config: ConfigDict,
        mesh: Mesh,
        frozen: Mapping[str, Params],
        batch_size: int = 16,
    ):
        self.config, self._task, self._mesh, self._frozen = config, task, mesh, frozen
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._generate = jax.jit(self._draw_batch, static_argnames="decode")

    @property
    def side(self) -> int:
        """Height and width in pixels that it was trained to draw."""
        return self.config.data.image_size

    @property
    def reads(self) -> str:
        """What it is shown to enlarge, "pictures" or "tokens"; empty: nothing, it draws."""
        return self._task.low.reads if self._task.low else ""

    @property
    def factor(self) -> int:
        """How many times it enlarges what it is shown."""
        return self._task.low.factor if self._task.low else 1

    def draw_with(
        self,
        params: Params,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        low: Sequence[Shown] | None = None,
        decode: bool = True,
    ) -> Iterator[Shown]:
        """One picture a (prompt, seed), in order, as they are done.

        ``low``: what a super-resolution stage enlarges, all of one size: pictures, or the tokens
        that another has drawn. Without ``decode`` tokens in place of pictures.
        """
        for start in range(0, len(prompts), self.batch_size):
            rows = list(zip(prompts, seeds, strict=True))[start : start + self.batch_size]
            full = rows + [rows[-1]] * (self.batch_size - len(rows))
            batch = {
                "tokens": self._tokens([prompt for prompt, _ in full]),
                "negative": self._tokens([negative] * len(full)) if negative else {},
                "seed": np.array([seed for _, seed in full], np.uint32),
            }
            if low is not None:
                shown = list(low[start : start + self.batch_size])
                batch["low"] = np.stack(shown + [shown[-1]] * (self.batch_size - len(rows)))
            batch = put_batch(batch, self._mesh)
            images = self._generate(params, self._frozen, batch, decode=decode)
            yield from np.asarray(images)[: len(rows)]

    def _tokens(self, texts: list[str]) -> dict[str, Any]:
        return {name: encoder.tokenize(texts) for name, encoder in self._task.encoders.items()}

    def _draw_batch(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        batch: Mapping[str, Any],
        decode: bool,
    ) -> jax.Array:
        task, side = self._task, self.side

        def encode(tokens: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: task.encoders[name].apply(frozen[name], rows["ids"], rows["mask"])
                for name, rows in tokens.items()
            }

        keys = jax.vmap(jax.random.key)(batch["seed"])
        height = width = side // task.codec.factor
        low = None
        if "low" in batch:
            assert task.low is not None, "only a super-resolution stage is shown something"
            low = task.low.read(frozen, batch["low"])
            height, width = (n * task.low.scale // task.codec.factor for n in low.shape[1:3])
            keys = fold_in(keys, side)  # not the noise that the picture was drawn from
        sizes = jax.numpy.tile(np.array([side, side, 0, 0, side, side]), (self.batch_size, 1))
        return task.generate(
            params,
            frozen,
            encode(batch["tokens"]),
            sizes,
            keys,
            (height, width),
            negative=encode(batch["negative"]) or None,
            low=low,
            decode=decode,
        )


class Generator(Drawer):
    """What a run's folder, ``DIR@step``, an exported model or builtin:NAME has learnt to draw.

    ``adapter`` is a file in the public layout to lay over it, ``adapter_scale`` times.
    ``changes`` override the sampling settings of its config (steps, guidance_scale, sampler, ...).
    ``fingerprints`` are those of its own weights and of every frozen network's; ``chosen`` is which
    step its run chose when it ended, and why, where it did.
    """

    @blaming("checkpoint")
    def __init__(
        self,
        checkpoint: str,
        batch_size: int = 16,
        adapter: str = "",
        adapter_scale: float = 1.0,
        **changes: Any,
    ):
        model = open_model(checkpoint)
        if adapter:
            model = with_adapter(model, adapter, adapter_scale)
        config = ConfigDict(model.config)
        if config.get("task") != "generation":
            task = config.get("task")
            raise UserError(f"{checkpoint} is no generator of pictures: its task is {task}.")
        config.sampling.update({k: v for k, v in changes.items() if v is not None})
        mesh = make_mesh()
        task, frozen = open_task(config, mesh)
        assert isinstance(task, Generation)
        super().__init__(task, config, mesh, frozen, batch_size)
        self.step, self.chosen = model.meta.get("step"), model.meta.get("chosen")
        self.fingerprints = {"weights": model.fingerprint} | {
            name: network.fingerprint for name, network in task.frozen.items()
        }
        wanted = jax.eval_shape(task.init, jax.random.key(0))[0]
        found = relaid(model.params, wanted)
        require_fit(found, wanted, checkpoint)
        params = ((path, found[path]) for path in wanted if path in found)
        self._params = place(params, shard_params(wanted, mesh))

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative: str = "",
        low: Sequence[Shown] | None = None,
        decode: bool = True,
    ) -> Iterator[Shown]:
        """As :meth:`draw_with`, from its own parameters."""
        return self.draw_with(self._params, prompts, seeds, negative, low, decode)

    def follows(self, other: "Generator") -> bool:
        """Whether the other's data are what it reads: pictures, or tokens of the same codes."""
        if self.reads == "pictures":
            return True
        codes = other._frozen.get("codec", {}).get(CODEBOOK)
        return codes is not None and np.array_equal(codes, self._frozen[LOW_CODEC][CODEBOOK])

    def costs(self) -> dict[str, float]:
        """Parameters of its own, FLOPs of its training a picture, calls of the denoiser a picture
        drawn, and FLOPs of these calls.
        """
        sampling, task = self.config.sampling, self._task
        side, key = self.side // task.codec.factor, jax.random.key(0)
        seen = task.low.see(key, task.low.blank(1, self.side)) if task.low else {}

        def call(params: Params, key: jax.Array, t: jax.Array) -> jax.Array:
            by = task.condition(params, task.null, jax.numpy.zeros((1, 6), np.int32))
            x = task.process.prior(key, (1, *task.codec.row(side, side)))
            return task.denoise(params, x, t, by._replace(**seen))

        t = jax.ShapeDtypeStruct((1,), np.float32)
        # Heun's method looks twice in every step but the last.
        calls = 2 * sampling.steps - 1 if sampling.sampler == "heun" else sampling.steps
        calls *= 2 if sampling.guidance_scale != 1 else 1
        return {
            "parameters": sum(value.size for value in self._params.values()),
            "training_flops": training_flops(self.config, task, self._frozen, self._mesh),
            "evaluations": calls,
            "flops": calls * count_flops(call, self._params, key, t),
        }

    def loss(self, part: Part) -> float:
        """The validation loss on some pictures: the same noise and times for every model."""
        task = self._task
        spec = parts.stream_spec(
            self.config,
            batch_size=self.batch_size,
            seed=0,
            sequential=True,
            flip=False,
            crop="centre",
            workers=0,
        )
        tokenize = {name: encoder.tokenize for name, encoder in task.encoders.items()}
        validate = jax.jit(task.validate)
        total = count = 0.0
        for index, rows in enumerate(make_stream(spec, [part], tokenize)):
            key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), index)
            batch = put_batch({"kept": rows}, self._mesh)
            sums = validate(self._params, self._frozen, {}, batch, key)
            total, count = total + float(sums["loss"][0]), count + float(sums["loss"][1])
        return total / count


def open_task(
    config: ConfigDict, mesh: Mesh, attention: str = "auto"
) -> tuple[Task, dict[str, Params]]:
    """A config's task, ready to run, and its frozen networks in their shards.

    ``attention`` is not read off the config: a model may be drawn with on other devices than those
    that it was trained on.
    """
    task = parts.make_task(config, placement(mesh, attention))
    frozen = place_frozen(task, mesh)
    if isinstance(task, Generation):
        null = {
            name: null_condition(encoder, frozen[name], mesh)
            for name, encoder in task.encoders.items()
        }
        task = replace(task, null=null)
    return task, frozen


def place_frozen(task: Task, mesh: Mesh) -> dict[str, Params]:
    """A task's frozen networks, streamed into their shards."""
    return {
        name: place(network.tensors(), shard_params(dict(network.shapes), mesh), network.dtype)
        for name, network in task.frozen.items()
    }


def unread(config: ConfigDict, task: Task) -> tuple[str, ...]:
    """Frozen networks that the step does without: a text read from a cache needs no encoder."""
    return tuple(getattr(task, "encoders", {})) if config.data.cache_text else ()
