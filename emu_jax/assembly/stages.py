"""What configs of generators share, whatever they are trained on: pre-training, quality-tuning.

A config makes its parts (codec, process, denoiser, sampling) and takes the rest from here. The
emoji that small sizes are trained on are in :mod:`emu_jax.assembly.emoji`.
"""

from typing import Any

from ml_collections import ConfigDict

from emu_jax.assembly.config import group, groups, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import Conditioner, MiniLM
from emu_jax.assembly.sections.runs import Generation

# Parameters that train of a generator with Stable Diffusion 3's transformer: all but its table of
# positions.
MMDIT = "denoiser/(?!pos_embed/pos_embed)|conditioner/"


def generation() -> ConfigDict:
    """The task of a generator with the text encoder MiniLM. Codec, denoiser, process, sampling,
    groups and data are still to be set.
    """
    config = section(Generation)
    config.text = dict(minilm=section(MiniLM))
    config.conditioner = section(Conditioner, size_features=0)
    # Mirrored clocks, letters and right hands would be wrong.
    config.data.update(dict(flip=False, cache_text=True))
    return config


def generator(**optimizer: Any) -> ConfigDict:
    """``config.groups`` of a generator: denoiser and conditioner are updated together and
    averaged; arguments are keys of ``optimizer``.
    """
    usual = dict(schedule="cosine", warmup=200, final=0.02, b2=0.99, weight_decay=0.01)
    given: dict[str, Any] = {**usual, **optimizer}
    return groups(generator=group("denoiser/|conditioner/", ema_decay=0.999, **given))


def quality_tune(config: ConfigDict, init_from: str) -> None:
    """Emu's second stage: few steps at a small constant learning rate, batch 64."""
    config.init_from = init_from
    config.groups.generator.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=20, weight_decay=0.0)
    )
    config.train.update(
        dict(steps=300, batch_size=64, validate_every=100, preview_every=100, checkpoint_every=100)
    )


def own_images(config: ConfigDict, dataset: str, name: str = "pictures") -> None:
    """Only the data set ``dataset`` of the user, as the source ``name``: its held-out part
    validates, the rest trains.
    """
    config.data.train = {name: source(dataset, select="part != held_out")}
    config.data.validation = {"held_out": {name: source(dataset, select="part == held_out")}}
    if "measure" in config:
        config.measure.judge = ""  # the shipped one knows emoji only
        config.measure.needles = f"{dataset}:part != held_out"


def coco(split: str, *known: str) -> ConfigDict:
    """The images of a user's folder in COCO's form (:mod:`emu_jax.data.coco`) that have these
    further images, ``instances`` with one instance at least.
    """
    select = [f"{name} != ''" for name in known] + ["count > 0"] * ("instances" in known)
    return ConfigDict(dict(coco=source(f"coco/{split}", select=" and ".join(select))))


def pretrain_large(config: ConfigDict, *, steps: int, batch_size: int) -> None:
    """Pre-training of a published size on the data set ``folder/pictures``; images and texts are
    encoded in the training step.
    """
    _large(config, "folder/pictures", learning_rate=1e-4, warmup=10_000)
    config.data.update(dict(cache_latents=False, cache_text=False))
    config.train.update(dict(steps=steps, batch_size=batch_size, checkpoint_every=1000))


def tune_large(config: ConfigDict, init_from: str) -> None:
    """Quality-tuning of a published size on the data set ``folder/needles``, at most 15,000 steps
    of batch 64 as Emu; latents and texts come from caches.
    """
    quality_tune(config, init_from)
    _large(config, "folder/needles", learning_rate=1e-5, warmup=100)
    config.data.update(dict(cache_latents=True, cache_text=True))
    config.train.update(dict(steps=15_000, batch_size=64, checkpoint_every=250))


def _large(config: ConfigDict, dataset: str, learning_rate: float, warmup: int) -> None:
    """In bf16; the data set is the user's."""
    config.compute_dtype = "bfloat16"
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(
        dict(learning_rate=learning_rate, schedule="constant", warmup=warmup)
    )
    own_images(config, dataset)
    config.train.update(dict(validate_every=1000, preview_every=1000))


def shrink(config: ConfigDict) -> None:
    """A run of six steps without caches, for tests."""
    config.sampling.update(dict(steps=2, previews=8))
    config.measure.judge = ""
    config.groups.generator.optimizer.warmup = 1
    config.data.update(dict(cache_latents=False, cache_text=False))
    config.train.update(
        dict(
            steps=6,
            batch_size=8,
            log_every=1,
            validate_every=3,
            preview_every=0,
            checkpoint_every=2,
        )
    )
