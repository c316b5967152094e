"""Whole configs: the keys of a run of each task, and how a config is checked and completed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from emu_jax.assembly.checking import shown, typed
from emu_jax.assembly.schema import Section, completed, key, one_of, required
from emu_jax.assembly.sections.autoencoding import (
    Autoencoder,
    Discriminator,
    Judge,
    Loss,
    Quantizer,
)
from emu_jax.assembly.sections.data import Data, Source, Stream
from emu_jax.assembly.sections.denoisers import Denoiser
from emu_jax.assembly.sections.feedback import Dpo, Feedback, Teacher
from emu_jax.assembly.sections.generation import (
    AutoencoderCodec,
    Codec,
    Conditioner,
    Control,
    Distillation,
    Dtype,
    Gaussian,
    Lora,
    LowResolution,
    Measure,
    Process,
    Sampling,
    Spatial,
    TextAdapter,
    TextEncoder,
    Vectors,
)
from emu_jax.assembly.sections.rewards import Blip, Preferences, Tower
from emu_jax.assembly.sections.segmentation import DeepLab, Labeled, Pixels, Solo, Tagger, Tags
from emu_jax.assembly.sections.training import Group, Mesh, Train
from emu_jax.errors import UserError
from emu_jax.registry import Lazy


@dataclass(frozen=True, kw_only=True)
class Run(Section):
    """What every run has."""

    compute_dtype: Dtype = key("float32", "Dtype of activations; parameters are float32.")
    init_from: str = key(
        "", "A run or model to start from, or builtin:NAME; empty: none.", path=True
    )
    init_skip: str = key(
        "", "Regular expression of parameters that init_from has but are fresh.", regex=True
    )
    deterministic: bool = key(
        True,
        "Bit-exact on GPUs too, at some cost in speed; a kernel that fails its check ends the run.",
    )
    attention: Literal["auto", "xla", "flash", "cudnn"] = key(
        "auto", "Implementation of attention; flash is for TPUs, cudnn for GPUs."
    )
    mesh: Mesh = key(Mesh, "The device mesh.")
    train: Train = key(Train, "The training loop.")
    data: Data = key(Data, "Data sets and streams.")
    groups: dict[str, Group] = required(
        "Sets of parameters, in the order of their updates.", filled=True, ordered=True
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, stream in self.data.streams.items():
            if stream.batch_size % self.train.accumulate:
                yield f"data.streams.{name}.batch_size", "a multiple of train.accumulate"
        for name, streams in self.validation().items():
            for stream in streams:
                if stream not in self.streams():
                    use = f"the name of a stream: {', '.join(self.streams())}"
                    yield f"data.validation.{name}.{stream}", use

    def streams(self) -> dict[str, Stream]:
        """The training streams by name, ``train`` first, with their own values for all keys."""
        data = self.data
        return {
            name: replace(
                stream,
                batch_size=stream.batch_size or self.train.batch_size,
                image_size=stream.image_size or data.image_size,
                flip=data.flip if stream.flip is None else stream.flip,
                random_crop=data.random_crop if stream.random_crop is None else stream.random_crop,
            )
            for name, stream in {"train": Stream(sources=data.train), **data.streams}.items()
        }

    def validation(self) -> dict[str, dict[str, dict[str, Source]]]:
        """The sources of every validation set by name of their stream."""
        found: dict[str, dict[str, dict[str, Source]]] = {}
        for name, entries in self.data.validation.items():
            flat = {key: entry for key, entry in entries.items() if isinstance(entry, Source)}
            nested = {key: entry for key, entry in entries.items() if not isinstance(entry, Source)}
            found[name] = nested or {"train": flat}
        return found


@dataclass(frozen=True, kw_only=True)
class Generation(Run):
    """A generator: codec x process x denoiser x conditioning."""

    task: Literal["generation"] = key("generation", "The task.")
    codec: Codec = required("What the generator models.")
    low_codec: AutoencoderCodec | None = key(None, "Codec of the coarse tokens that are enlarged.")
    low_resolution: LowResolution = key(LowResolution, "The image that is enlarged.")
    text: dict[str, TextEncoder] = required("Frozen text encoders by name.", filled=True)
    conditioner: Conditioner = key(Conditioner, "How they are joined.")
    adapter: TextAdapter = key(TextAdapter, "Adapters of the text encoders' states.")
    denoiser: Denoiser = required("The network.")
    process: Process = key(Gaussian, "Noise or masks.")
    sampling: Sampling = required("How images are sampled.")
    drop_text: float = key(
        0.1, "Share of training images without their text.", at_least=0, at_most=1
    )
    lora: Lora = key(Lora, "Low-rank adapters.")
    control: Control = key(Control, "A ControlNet.")
    spatial: Spatial = key(Spatial, "An image beside the denoiser's input.")
    measure: Measure = key(Measure, "Samples that are judged at validations.")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.control.hint and self.task != "generation":
            yield "control.hint", "an empty string: ControlNets train with task=generation"
        if self.spatial.kind and self.task != "generation":
            yield "spatial.kind", "an empty string, or task=generation"
        if self.control.hint and self.spatial.kind and self.control.train:
            yield "control.train", "False: ControlNets train without a concatenated image"


@dataclass(frozen=True, kw_only=True)
class FeedbackLearning(Generation):
    """A generator that learns from frozen networks. It has the keys of task=generation as well."""

    task: Literal["feedback"] = key("feedback", "The task.")
    feedback: Feedback = key(Feedback, "The images that teachers get.")
    teachers: dict[str, Teacher] = required("The teachers by name.", filled=True)


@dataclass(frozen=True, kw_only=True)
class PreferenceOptimization(Generation):
    """A generator that learns from pairs of images. It has the keys of task=generation as well."""

    task: Literal["dpo"] = key("dpo", "The task.")
    dpo: Dpo = key(Dpo, "Diffusion-DPO.")


@dataclass(frozen=True, kw_only=True)
class TextAdaptation(Generation):
    """Adapters of text encoders, over the frozen generator that ``init_from`` names. It has the
    keys of task=generation as well.
    """

    task: Literal["text_adaptation"] = key("text_adaptation", "The task.")
    distillation: Distillation = key(Distillation, "What is distilled.")
    vectors: Vectors = key(Vectors, "Vectors of the simple prompts.")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.adapter.layers:
            yield "adapter.layers", "1 or more"


@dataclass(frozen=True, kw_only=True)
class Autoencoding(Run):
    """An autoencoder, with Gaussian latents or a codebook."""

    task: Literal["autoencoding"] = key("autoencoding", "The task.")
    stream: str = key("train", "The stream that it is trained on.", filled=True)
    latent_channels: int = key(16, "Channels of the latents.", at_least=1)
    autoencoder: Autoencoder = key(Autoencoder, "The network.")
    quantizer: Quantizer = key(Quantizer, "The codebook.")
    discriminator: Discriminator = key(Discriminator, "The network of the adversarial loss.")
    loss: Loss = key(Loss, "Weights of the loss.")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.stream not in self.streams():
            yield "stream", f"the name of a stream: {', '.join(self.streams())}"


@dataclass(frozen=True, kw_only=True)
class Contrastive(Run):
    """A judge: images and texts in one space."""

    task: Literal["contrastive"] = key("contrastive", "The task.")
    text: dict[str, TextEncoder] = required("The frozen text encoder.", filled=True)
    judge: Judge = key(Judge, "The network.")


@dataclass(frozen=True, kw_only=True)
class Segmentation(Run):
    """A segmenter: which things are where."""

    task: Literal["segmentation"] = key("segmentation", "The task.")
    labeled: Labeled = key(Labeled, "The objects.")
    solo: Solo = key(Solo, "The network.")
    codec: AutoencoderCodec | None = key(None, "The frozen autoencoder of labeled.round_trip.")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.labeled.classes:
            yield "labeled.classes", "the names of the classes"


@dataclass(frozen=True, kw_only=True)
class RewardLearning(Run):
    """A reward, learned from preferences."""

    task: Literal["reward"] = key("reward", "The task.")
    text: dict[str, TextEncoder] = required("The frozen text encoder.", filled=True)
    reward: Tower | Blip = key(Tower, "The network.")
    preferences: Preferences = key(Preferences, "What it learns.")
    codec: AutoencoderCodec | None = key(None, "The frozen autoencoder of preferences.round_trip.")


@dataclass(frozen=True, kw_only=True)
class SemanticSegmentation(Run):
    """A segmenter: a label for every pixel."""

    task: Literal["semantic_segmentation"] = key("semantic_segmentation", "The task.")
    labeled: Pixels = key(Pixels, "The labels.")
    deeplab: DeepLab = key(DeepLab, "The network.")
    codec: AutoencoderCodec | None = key(None, "The frozen autoencoder of labeled.round_trip.")


@dataclass(frozen=True, kw_only=True)
class Tagging(Run):
    """A tagger: which words apply to an image."""

    task: Literal["tagging"] = key("tagging", "The task.")
    tags: Tags = key(Tags, "The words.")
    tagger: Tagger = key(Tagger, "The network.")
    codec: AutoencoderCodec | None = key(None, "The frozen autoencoder of tags.round_trip.")


class TaskKind(NamedTuple):
    """The config of a task, and what builds it: ``make(config, placement)``, a
    :class:`emu_jax.tasks.base.Task`. ``training``: sections that only training reads, and
    ``groups`` those of parameters that only training has; without them, what the task has trained
    is a model of task=generation.
    """

    section: type[Run]
    make: Callable[..., Any]
    training: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


TASKS: dict[str, TaskKind] = {
    "generation": TaskKind(Generation, Lazy("emu_jax.assembly.generation:make_generation")),
    "autoencoding": TaskKind(Autoencoding, Lazy("emu_jax.assembly.autoencoding:make_autoencoding")),
    "contrastive": TaskKind(Contrastive, Lazy("emu_jax.assembly.contrastive:make_contrastive")),
    "feedback": TaskKind(
        FeedbackLearning,
        Lazy("emu_jax.assembly.feedback:make_feedback"),
        training=("feedback", "teachers"),
        groups=("discriminator",),
    ),
    "reward": TaskKind(RewardLearning, Lazy("emu_jax.assembly.rewards:make_preferences")),
    "dpo": TaskKind(
        PreferenceOptimization, Lazy("emu_jax.assembly.dpo:make_dpo"), training=("dpo",)
    ),
    "text_adaptation": TaskKind(
        TextAdaptation, Lazy("emu_jax.assembly.text_adaptation:make_text_adaptation")
    ),
    "segmentation": TaskKind(Segmentation, Lazy("emu_jax.assembly.segmentation:make_segmentation")),
    "semantic_segmentation": TaskKind(
        SemanticSegmentation, Lazy("emu_jax.assembly.segmentation:make_semantic")
    ),
    "tagging": TaskKind(Tagging, Lazy("emu_jax.assembly.tagging:make_tagging")),
}


def run_of(config: ConfigDict | Mapping[str, Any]) -> type[Run] | None:
    """The section of a whole config, by its ``task``."""
    kind = _kind_of(config)
    return kind and kind.section


def drawn_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model as it draws: without the sections that only training reads."""
    kind = _kind_of(config)
    if kind is None or not kind.training:
        return dict(config)
    kept = {key: value for key, value in config.items() if key not in kind.training}
    if kind.groups and "groups" in kept:
        groups = kept["groups"].items()
        kept["groups"] = {name: own for name, own in groups if name not in kind.groups}
    return kept | {"task": "generation"}


def _kind_of(config: ConfigDict | Mapping[str, Any]) -> TaskKind | None:
    """That of a config's ``task``, which may be anything in a stored one."""
    return next((kind for task, kind in TASKS.items() if task == config.get("task")), None)


def check(config: ConfigDict | Mapping[str, Any]) -> Run:
    """A whole config as its dataclass.

    Raises:
      UserError: an unknown or a missing key, or a value of another type or outside its range.
    """
    kind = run_of(config)
    if kind is None:
        task = config.get("task", "")
        raise UserError(f"config.task is {shown(task)}; use {one_of(TASKS, task)}.")
    return typed(kind, config, "config")


def complete(config: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """A stored config with the keys that it lacks, at their defaults; unchecked.

    A config of no task, e.g. of an imported network alone, stays as it is.
    """
    kind = run_of(config)
    if kind is None:
        return ConfigDict(config)
    found = completed(kind, config)
    upgrade(found)
    return found


def upgrade(config: ConfigDict) -> None:
    """Spells the values of a config that an older version stored as they are spelled now."""
    denoiser = config.get("denoiser")
    if isinstance(denoiser, ConfigDict) and isinstance(denoiser.get("remat"), bool):
        with denoiser.ignore_type():  # of older transformers
            denoiser.remat = "block" if denoiser.remat else "none"
