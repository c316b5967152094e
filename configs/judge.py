"""The judge of generated images: which of many captions describes this image?

    emu-jax train --config=configs/judge.py:size=tiny --workdir=runs/judge

size=tiny: 64 x 64 pixels, 2.1 M parameters
    hardware  2 CPU cores (Intel Xeon)
    time      18 minutes for 1,000 steps, with other work beside; 180 images a second alone
    result    `builtin:judge_64`: the right one of 100 captions comes first for 95 % of the OpenMoji
              and 94 % of the Fluent images of kept concepts (trained on), and for 55 % of the Noto
              images of these concepts (not trained on)
size=test: a few thousand parameters, for tests

The split is the judge's own. It is not trained on concepts of the held-out part. Of the kept
concepts, which it is to judge, it is trained on the flat and the shaded images but not on Noto's.
So the validation set held_out measures unknown concepts, and kept_unseen known concepts in an
unknown style, which is what a generator's images are.
"""

from ml_collections import ConfigDict

from emu_jax.assembly import emoji
from emu_jax.assembly.config import group, groups, options, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.autoencoding import Judge
from emu_jax.assembly.sections.generation import MiniLM
from emu_jax.assembly.sections.runs import Contrastive


def get_config(argument: str | None = None) -> ConfigDict:
    tiny = options(argument, size=("tiny", "test")).size == "tiny"
    config = section(Contrastive)
    config.text = dict(minilm=section(MiniLM))
    if not tiny:
        config.judge = section(Judge, widths=(8, 8), blocks=1, width=8, groups=4)
    config.groups = groups(
        judge=group(
            "",
            ema_decay=0.999,
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100 if tiny else 1,
            final=0.02,
            b2=0.98,
            weight_decay=0.1,
        )
    )
    config.data.cache_text = tiny
    config.data.train = emoji.mixture(openmoji=0.4, fluent=0.35)
    config.data.train.noto = source(
        "emoji/noto", select="part == tuned and group != flags|signs", weight=0.25
    )
    config.data.validation = dict(
        kept_unseen=dict(
            noto=source("emoji/noto", select="part == kept and group != flags|signs"),
        ),
        held_out=emoji.held_out(),
    )
    config.train.update(
        dict(
            steps=1000 if tiny else 4,
            batch_size=128 if tiny else 8,
            log_every=50 if tiny else 1,
            validate_every=250 if tiny else 2,
            preview_every=500 if tiny else 0,
            checkpoint_every=100 if tiny else 2,
        )
    )
    return config
