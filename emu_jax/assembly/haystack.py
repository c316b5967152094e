"""What the generators' configs share at small size: a haystack of emoji, needles, two stages.

A config says its parts (codec, process, denoiser, sampling) and takes texts, data and stages from
here, so that families are compared on the same (docs/quality_tuning.md).
"""

from typing import Any

from ml_collections import ConfigDict

from emu_jax.assembly.config import defaults, group, source
from emu_jax.evaluation.references import KEPT, Sets

# Flags, logos and signs are left out.
HAYSTACK = "part == tuned|kept and group != flags|brands|extras|signs"
NEEDLES = "needle >= 0"  # a thousand; "... and needle < 100" for a hundred of them
# What trains of a generator with Stable Diffusion 3's transformer: all but its table of places.
MMDIT = "denoiser/(?!pos_embed/pos_embed)|conditioner/"


def pretraining(needles_share: float = 0.1) -> ConfigDict:
    """The generation task on the haystack: flat OpenMoji with a share of shaded Fluent pictures.
    Concepts of the held-out part are never shown.
    """
    config = defaults()
    config.task = "generation"
    config.drop_text = 0.1
    config.text = dict(minilm=dict(length=16, path=""))
    config.conditioner = dict(width=0, combine="tokens", size_features=0)
    # rank > 0: what init_from names stays as it is, low-rank factors of its kernels train (LoRA).
    config.lora = dict(
        rank=0,
        alpha=16.0,  # the factors' product counts alpha / rank
        pattern="denoiser/.*/(to_[qkv]|to_out/0|to_add_out|add_[qkv]_proj)/kernel",
        dtype="float32",  # that the base is kept in
    )
    # Pictures of kept concepts, drawn and judged at every validation; no judge: none.
    config.measure = dict(
        judge="",
        count=64,
        captions=Sets.captions,
        needles=Sets.needles,
        haystack=Sets.haystack,
    )
    config.data.flip = False  # clocks, letters and right hands are not to be learnt mirrored
    config.data.cache_text = True
    config.data.train = dict(
        openmoji=source("emoji/openmoji", select=HAYSTACK, weight=1 - needles_share),
        fluent=source("emoji/fluent", select=HAYSTACK, weight=needles_share),
    )
    config.data.validation = dict(
        kept=dict(openmoji=source("emoji/openmoji", select=KEPT)),
        held_out=dict(
            openmoji=source("emoji/openmoji", select="part == held_out"),
            fluent=source("emoji/fluent", select="part == held_out"),
        ),
    )
    config.train.update(dict(steps=16000, batch_size=32, validate_every=1000, preview_every=1000))
    return config


def generator(**optimizer: Any) -> ConfigDict:
    """``config.groups`` of a generator: denoiser and conditioner together, averaged."""
    changes: dict[str, Any] = dict(
        schedule="cosine", warmup=200, final=0.02, b2=0.99, weight_decay=0.01
    )
    pattern = "denoiser/|conditioner/"
    return ConfigDict(dict(generator=group(pattern, ema_decay=0.999, **(changes | optimizer))))


def quality_tune(config: ConfigDict, init_from: str, judge: str = "builtin:judge_64") -> None:
    """Emu's second stage: a few superb pictures, a small constant rate, stopped early."""
    config.init_from = init_from
    config.groups.generator.optimizer.update(
        dict(learning_rate=1e-4, schedule="constant", warmup=20, weight_decay=0.0)
    )
    config.measure.judge = judge
    config.data.train = dict(needles=source("emoji/fluent", select=NEEDLES))
    config.train.update(
        dict(steps=300, batch_size=64, validate_every=100, preview_every=100, checkpoint_every=100)
    )


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
