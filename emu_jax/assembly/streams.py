"""From a config to data streams: sources, batch layout, caches.

The stream "train" is ``config.data.train``; further ones are ``config.data.streams``, each with
its own sources and, where it says so, its own batch size and image size. A validation set names
sources for the task's first stream, or sources for each of several streams by name.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.caches import open_caches
from emu_jax.data import pipeline
from emu_jax.data.pipeline import Loader, Selection, StreamSpec
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import process_rows, replicated
from emu_jax.tasks.base import Batch, Rows, Task
from emu_jax.text.encoder import TextEncoder
from emu_jax.training.trainer import Preview


@dataclass(frozen=True)
class OpenStream:
    """Called with a first step: this host's rows of one stream from there on, to be closed."""

    loader: Callable[[], Loader]

    def __call__(self, first: int) -> Any:
        return pipeline.stream(self.loader(), first)

    @cached_property
    def captions(self) -> list[str]:
        """The captions of the first batch of all hosts, without those of padding."""
        return self.loader().texts(0)


@dataclass(frozen=True)
class Validation:
    """A validation set: called, it is read from its first batch."""

    streams: Mapping[str, OpenStream]

    def __call__(self) -> Generator[Batch]:
        return _until_all_end(self.streams)


def open_selections(config: ConfigDict, sources: ConfigDict) -> list[Selection]:
    """The sources of one stream; one that does not exist or selects no record is an error."""
    chosen = [
        Selection(
            open_source(entry.dataset, config.data.data_dir),
            entry.weight,
            entry.select,
            entry.captions,
        )
        for entry in sources.values()
    ]
    for selection in chosen:
        selection.records()
    return chosen


def stream_spec(config: ConfigDict, stream: str = "train", **changes: Any) -> StreamSpec:
    """How one stream's records become batches: the data section and the stream's own settings."""
    data, own = config.data, _section(config, stream)
    crop = _or(own.get("random_crop"), data.random_crop)
    arguments: dict[str, Any] = dict(
        batch_size=own.get("batch_size") or config.train.batch_size,
        side=own.get("image_size") or data.image_size,
        seed=config.train.seed,
        buckets=data.buckets,
        bucket_step=data.bucket_step,
        background=tuple(data.background),
        crop="random" if crop else "centre",
        flip=_or(own.get("flip"), data.flip),
        scaled_decoding=data.get("scaled_decoding", False),  # older configs lack it
        workers=data.workers,
        threads=data.threads,
    )
    return StreamSpec(**{**arguments, **changes})


def require_side(config: ConfigDict, factor: int, stream: str = "train") -> None:
    """Raises a UserError where a stream has images that are no whole number of positions, each of
    ``factor`` pixels along a side.
    """
    spec = stream_spec(config, stream)
    if any(pixels % factor for shape in spec.shapes() for pixels in shape):
        name, value = ("image_size", spec.side)
        if spec.buckets and not spec.side % factor:
            name, value = ("bucket_step", spec.bucket_step)
        raise UserError(
            f"data.{name} is {value}, but a position of the latents or tokens has {factor} x "
            f"{factor} pixels; use a multiple of {factor}."
        )


def stream_specs(config: ConfigDict, task: Task) -> dict[str, StreamSpec]:
    """The layout of every stream that the task reads."""
    return {name: stream_spec(config, name) for name in task.streams}


@dataclass(frozen=True)
class Training:
    """Called with a first step: this host's rows of every stream of a task, side by side: step n
    reads batch n of each.
    """

    streams: Mapping[str, OpenStream]

    def __call__(self, first: int) -> Generator[Batch]:
        return _side_by_side(self.streams, first)


def training_stream(
    config: ConfigDict, task: Task, frozen: Mapping[str, Params], mesh: Mesh
) -> Training:
    """What a task trains on."""
    return Training(
        {
            name: open_stream(config, task, frozen, mesh, name, _sources(config, name), spec)
            for name, spec in stream_specs(config, task).items()
        }
    )


def validation_streams(
    config: ConfigDict, task: Task, frozen: Mapping[str, Params], mesh: Mesh
) -> dict[str, Validation]:
    """Every validation set."""
    found = {}
    for name, section in config.data.validation.items():
        opened = {}
        for stream, sources in _by_stream(section, task, name).items():
            spec = stream_spec(config, stream, sequential=True, flip=False, crop="centre")
            opened[stream] = open_stream(config, task, frozen, mesh, stream, sources, spec)
        found[name] = Validation(opened)
    return found


def previews(
    config: ConfigDict,
    task: Task,
    frozen: Mapping[str, Params],
    mesh: Mesh,
    training: Training,
    validation: Mapping[str, Validation],
) -> dict[str, Preview]:
    """What previews show: ``train.preview_prompts``, else the first batch of every validation set,
    else the first training batch. Images that a generator draws have their captions.
    """
    generator, prompts = task.generator, config.train.preview_prompts
    if prompts:
        if generator is None or generator.low or generator.further:
            raise UserError(
                "train.preview_prompts is for models that draw from prompts alone; leave it empty: "
                "previews show validation images then."
            )
        batch = {generator.stream: _prompt_rows(config, generator.encoders, frozen, mesh)}
        return {"prompts": Preview(lambda: (b for b in [batch]), lambda: prompts)}

    def captioned(batches: Callable[[], Generator[Batch]], streams: Mapping[str, OpenStream]):
        own = streams.get(generator.stream) if generator else None
        return Preview(batches, own and (lambda: own.captions))

    found = {name: captioned(sets, sets.streams) for name, sets in validation.items()}
    return found or {"train": captioned(lambda: training(0), training.streams)}


def _prompt_rows(
    config: ConfigDict,
    encoders: Mapping[str, TextEncoder],
    frozen: Mapping[str, Params],
    mesh: Mesh,
) -> Rows:
    """This host's rows of a batch of the preview prompts, with the encoders' outputs. The images
    are blank: a preview reads their size alone.
    """
    prompts, side = list(config.train.preview_prompts), config.data.image_size
    prompts += [prompts[-1]] * (-len(prompts) % mesh.size)
    own = process_rows(len(prompts), mesh)
    text = {}
    for name, encoder in encoders.items():
        tokens = encoder.tokenize(prompts)
        apply = jax.jit(encoder.apply, out_shardings=replicated(mesh))
        encoded = jax.device_get(apply(frozen[name], tokens["ids"], tokens["mask"]))._asdict()
        text[name] = {key: value[own] for key, value in encoded.items() if value is not None}
    sizes = np.tile(np.array([side, side, 0, 0, side, side], np.int32), (len(own), 1))
    return {"image": np.zeros((len(own), side, side, 3), np.uint8), "sizes": sizes, "text": text}


def open_stream(
    config: ConfigDict,
    task: Task,
    frozen: Mapping[str, Params],
    mesh: Mesh,
    stream: str,
    sources: ConfigDict,
    spec: StreamSpec,
) -> OpenStream:
    """One stream, through the caches that the config asks for."""
    selections = open_selections(config, sources)
    caches = open_caches(config, task, stream, frozen, selections, spec, mesh)
    holds = task.streams[stream]
    encoders = holds.encoders
    spec = replace(spec, further=holds.further, columns=holds.columns, captions=holds.captions)
    tokenize = {name: encoder.tokenize for name, encoder in encoders.items()}
    rows = process_rows(spec.batch_size, mesh)
    return OpenStream(partial(Loader, spec, selections, tokenize, caches, rows))


def _side_by_side(streams: Mapping[str, OpenStream], first: int) -> Generator[Batch]:
    """Batches of endless streams."""
    with ExitStack() as stack:
        opened = _opened(stack, streams, first)
        while True:
            yield {name: next(rows) for name, rows in opened.items()}


def _until_all_end(streams: Mapping[str, OpenStream]) -> Generator[Batch]:
    """Batches of finite streams until the longest ends. A stream that has ended repeats its last
    rows, which are no longer valid.
    """
    with ExitStack() as stack:
        opened, last = _opened(stack, streams, 0), {}
        while True:
            rows = {name: next(stream, None) for name, stream in opened.items()}
            if all(found is None for found in rows.values()):
                return
            for name, found in rows.items():
                if found is None:
                    found = {**last[name], "valid": np.zeros_like(last[name]["valid"])}
                last[name] = found
            yield dict(last)


def _opened(
    stack: ExitStack, streams: Mapping[str, OpenStream], first: int
) -> dict[str, Iterator[Rows]]:
    """The streams from batch ``first`` on; leaving ``stack`` closes them."""
    return {name: stack.enter_context(closing(stream(first))) for name, stream in streams.items()}


def _section(config: ConfigDict, stream: str) -> Mapping[str, Any]:
    """The stream's own settings; "train" needs none."""
    streams = config.data.get("streams") or {}
    if stream in streams:
        return streams[stream]
    if stream == "train":
        return {}
    raise UserError(
        f"The task {config.task} reads the stream {stream!r}, which the config does not give: add "
        f"config.data.streams.{stream}."
    )


def _sources(config: ConfigDict, stream: str) -> ConfigDict:
    return _section(config, stream).get("sources") or config.data.train


def _by_stream(section: ConfigDict, task: Task, name: str) -> Mapping[str, ConfigDict]:
    """The sources of a validation set by stream."""
    if all("dataset" in entry for entry in section.values()):
        return {next(iter(task.streams)): section}
    unknown = [stream for stream in section if stream not in task.streams]
    if unknown:
        raise UserError(
            f"config.data.validation.{name} gives sources for the stream {unknown[0]!r}; the task "
            f"reads {', '.join(task.streams)}."
        )
    return dict(section.items())


def _or(own: Any, default: Any) -> Any:
    return default if own is None else own
