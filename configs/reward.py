"""A reward of images for prompts, learned from pairs of which people prefer one (Bradley-Terry).

    emu-jax data build preferences/openmoji && emu-jax data build preferences/fluent
    emu-jax train --config=configs/reward.py:size=tiny,dimension=color --workdir=runs/reward_color

dimension=color, layout, lighting or detail: of synthetic pairs that differ in this dimension alone
dimension=global: one reward of all pairs, whatever their dimension
dimension=separate: one network with an output for each dimension, which also learns that a pair is
    a tie in all other dimensions

pairs=finish: pairs of which the shaded drawing is preferred over the flat one of the same thing
    (data set `finishes/preference`), as one preference (dimension=global)

size=tiny: 64 x 64 pixels, a convolutional tower that attends to MiniLM's tokens, 2.3 M parameters
    hardware, time, result  not measured
size=test: the same with a few thousand parameters, for tests
size=blip: ImageReward's network (ViT-L/16 at 224 pixels, BERT; 447 M parameters) and its training
    settings, with a data set of the user, `preferences/pairs` (docs/feedback.md). The last 30 % of
    the layers of both transformers and the head are trained. It needs `--config.text.bert.path`, a
    folder with BERT's tokenizer, and should start from BLIP's or ImageReward's weights
    (`--config.init_from`). The published head has dropout in training, which this one has not
    hardware, time, result  not measured

Validation has the accuracy on pairs of every dimension (`unseen/accuracy_color`, ...). When
training ends, mean and deviation of the scores of the validation images and the mean standardized
score of the preferred ones, alpha, are stored with the weights.
"""

from ml_collections import ConfigDict

from emu_jax.assembly import emoji
from emu_jax.assembly.config import group, groups, options, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import AutoencoderCodec, BertTokens, MiniLM
from emu_jax.assembly.sections.rewards import Blip, Preferences, Tower
from emu_jax.assembly.sections.runs import RewardLearning
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.errors import UserError
from emu_jax.evaluation.references import KEPT

# ImageReward trains the last 30 % of each transformer's layers.
_TRAINED = r"mlp/|text_encoder/encoder/layer/(8|9|1\d)/|visual_encoder/(norm|blocks/(1[6-9]|2\d))/"


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test", "blip"),
        dimension=(*DIMENSIONS, "global", "separate"),
        pairs=("faults", "finish"),
    )
    if chosen.pairs == "finish" and (chosen.size == "blip" or chosen.dimension != "global"):
        raise UserError("pairs=finish needs dimension=global and size=tiny or size=test.")
    config = section(RewardLearning)
    config.preferences = section(
        Preferences,
        dimensions=DIMENSIONS,
        dimension=chosen.dimension if chosen.dimension in DIMENSIONS else "",
        separate=chosen.dimension == "separate",
        indifference=float(chosen.dimension == "separate"),
    )
    if chosen.size == "blip":
        return _blip(config)
    config = _small(config, chosen.size == "tiny")
    if chosen.pairs == "finish":
        config.preferences.dimensions = ()
        config.data.train = emoji.finish_pairs(emoji.TUNED)
        config.data.validation = dict(unseen=emoji.finish_pairs(KEPT))
    return config


def _small(config: ConfigDict, tiny: bool) -> ConfigDict:
    config.text = dict(minilm=section(MiniLM, length=emoji.CAPTION_TOKENS))
    config.reward = section(Tower)
    if tiny:
        config.preferences.round_trip = 0.25
        config.codec = section(AutoencoderCodec, path="builtin:autoencoder_64")
        config.data.cache_text = True
    else:
        config.reward = section(Tower, widths=(8, 8), blocks=1, heads=2, groups=4)
    config.groups = groups(
        reward=group(
            "",
            ema_decay=0.99,
            learning_rate=1e-3,
            schedule="cosine",
            warmup=50 if tiny else 1,
            final=0.02,
            weight_decay=0.1,
        )
    )
    own = config.preferences.dimension
    select = "split == train" + (f" and dimension == {own}" if own else "")
    config.data.train = emoji.preferences(select)
    config.data.validation = dict(unseen=emoji.preferences("split == validation"))
    config.train.update(
        dict(
            steps=600 if tiny else 4,
            batch_size=32 if tiny else 4,
            log_every=50 if tiny else 1,
            validate_every=200 if tiny else 2,
            preview_every=600 if tiny else 0,
            checkpoint_every=100 if tiny else 2,
        )
    )
    return config


def _blip(config: ConfigDict) -> ConfigDict:
    """ImageReward's optimizer and batch; 10 epochs of the user's pairs are for the user to set."""
    config.preferences.dimensions = ()
    config.preferences.dimension, config.preferences.separate = "", False
    config.text = dict(bert=section(BertTokens))
    config.reward = section(Blip)
    config.compute_dtype = "bfloat16"
    config.data.image_size = 224
    config.data.train = dict(pairs=source("preferences/pairs", select="part == train"))
    config.data.validation = dict(
        unseen=dict(pairs=source("preferences/pairs", select="part == held_out"))
    )
    config.groups = groups(
        reward=group(_TRAINED, learning_rate=1e-5, schedule="cosine", warmup=500)
    )
    config.train.update(dict(steps=20_000, batch_size=64, validate_every=1_000))
    return config
