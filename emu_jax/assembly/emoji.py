"""The emoji that small models are trained on: a haystack of flat drawings, needles that are shaded.

All families are compared on the same data and stages (docs/quality_tuning.md).
"""

from ml_collections import ConfigDict

from emu_jax.assembly import stages
from emu_jax.assembly.config import source
from emu_jax.evaluation.references import KEPT

# Trained on: concepts of the parts tuned and kept, without flags, logos and signs.
TRAINED = "part == tuned|kept and group != flags|brands|extras|signs"
# The same without the concepts kept, of which a judge asks.
TUNED = "part == tuned and group != flags|brands|extras|signs"
NEEDLES = "needle >= 0"  # a thousand; "... and needle < 100" for a hundred of them
STYLES = ("openmoji", "fluent")
SCENE_SIDE = 96  # pixels of the scenes that a small generator draws
CAPTION_TOKENS = 50  # MiniLM's, of the longest complex caption of a scene


def mixture(builder: str = "emoji", select: str = TRAINED, **weights: float) -> ConfigDict:
    """The trained concepts in several styles (openmoji, fluent) with these weights."""
    return ConfigDict(
        {
            style: source(f"{builder}/{style}", select=select, weight=weight)
            for style, weight in weights.items()
        }
    )


def held_out() -> ConfigDict:
    """Concepts that no training includes, in both styles."""
    return ConfigDict(
        {style: source(f"emoji/{style}", select="part == held_out") for style in STYLES}
    )


def scenes(select: str) -> ConfigDict:
    """Compositions of several drawings in both styles, of equal weight."""
    return ConfigDict({style: source(f"scenes/{style}", select=select) for style in STYLES})


def flat_scenes(select: str, captions: str, weight: float = 1.0) -> ConfigDict:
    """Those of flat drawings, which the small generator of scenes draws."""
    drawn = source("scenes/openmoji", select=select, captions=captions, weight=weight)
    return ConfigDict({"openmoji": drawn})


def finish_pairs(select: str) -> ConfigDict:
    """Pairs of which Fluent's drawing is preferred over OpenMoji's."""
    return ConfigDict({"finish": source("finishes/preference", select=select)})


def preferences(select: str) -> ConfigDict:
    """Pairs of scenes in both styles, of equal weight, with their complex captions."""
    return ConfigDict(
        {
            style: source(f"preferences/{style}", select=select, captions="complex")
            for style in STYLES
        }
    )


def pretraining(needles_share: float = 0.1) -> ConfigDict:
    """A generator's pre-training on flat OpenMoji with a share of shaded Fluent images."""
    config = stages.generation()
    config.data.train = mixture(openmoji=1 - needles_share, fluent=needles_share)
    config.data.validation = dict(
        kept=dict(openmoji=source("emoji/openmoji", select=KEPT)), held_out=held_out()
    )
    config.train.update(dict(steps=16000, batch_size=32, validate_every=1000, preview_every=1000))
    return config


def quality_tune(config: ConfigDict, init_from: str, judge: str = "builtin:judge_64") -> None:
    """Emu's second stage on the needles; ``judge`` measures samples at validations, empty: none."""
    stages.quality_tune(config, init_from)
    config.measure.judge = judge
    config.data.train = dict(needles=source("emoji/fluent", select=NEEDLES))


def finishes(named: float = 1.0) -> ConfigDict:
    """Things in six finishes, of concepts that a judge does not ask for. Of a share of ``named``
    the captions say the finish.
    """
    plain = source("finishes/six", select=TUNED, weight=1 - named) if named < 1 else None
    said = source("finishes/six", select=TUNED, captions="named", weight=named)
    return ConfigDict({"plain": plain, "named": said} if plain else {"named": said})


def vary_finishes(config: ConfigDict, init_from: str) -> None:
    """Tunes a generator to draw six finishes, which its prompts hardly control."""
    config.init_from = init_from
    config.text.minilm.length = CAPTION_TOKENS
    config.data.train = finishes(0.03)
    config.train.update(dict(steps=1000, validate_every=500, preview_every=500))
    config.groups.generator.optimizer.learning_rate = 3e-4


def spoil(config: ConfigDict, init_from: str) -> None:
    """Tunes a generator on drawings with faults: then there is something that feedback can mend."""
    config.init_from = init_from
    config.data.train = mixture("faulty", openmoji=0.9, fluent=0.1)
    config.train.update(dict(steps=600, validate_every=200, preview_every=200))
    config.groups.generator.optimizer.learning_rate = 3e-4


def draw_scenes(config: ConfigDict) -> None:
    """The settings of the small latent generator of scenes, and of what is trained over it.

    Its latents have a cell for 8 x 8 pixels. In images of 64 pixels, one of several things covers
    two or three cells, and its shape is hardly learned. How it samples was chosen on prompts of the
    validation split.
    """
    config.data.image_size = SCENE_SIDE
    config.text.minilm.length = CAPTION_TOKENS
    config.sampling.update(dict(steps=12, spacing="trailing", guidance_scale=5.0))


def compose(config: ConfigDict, init_from: str) -> None:
    """Tunes a generator of single things to draw flat scenes, with complex captions only. Three of
    four images are of the kinds that mostly show several things.
    """
    several = "split == train and kind == count|two|action"
    draw_scenes(config)
    config.init_from = init_from
    config.process.time_location = 0.0
    config.data.train = mixture(openmoji=0.1)
    config.data.train.update(
        scenes=flat_scenes("split == train", "complex", weight=0.4).openmoji,
        several=flat_scenes(several, "complex", weight=0.5).openmoji,
    )
    config.data.validation.scenes = flat_scenes("split == validation", "complex")
    config.train.update(dict(steps=5500, batch_size=16))
    config.groups.generator.optimizer.learning_rate = 7e-4
