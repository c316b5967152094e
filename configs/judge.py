"""The judge: which of many captions is this picture's? Trained on real pictures of all styles.

    emu-jax train --config=configs/judge.py:size=tiny --workdir=runs/judge

size=tiny: 64 x 64 pictures, 2 M parameters; the shipped weights `builtin:judge_64` come from it.
size=test: a few thousand parameters for tests.

Its own split: concepts of the held-out part are never shown; of the kept concepts, which it is to
judge, it sees the flat and the shaded pictures but never Noto's. So held_out measures unknown
things, kept_unseen known things drawn by a hand it has not seen draw them, which is what a
generator's pictures are.
"""

from ml_collections import ConfigDict

from emu_jax.assembly.config import defaults, group, options, source

PICTURES = "part == tuned|kept and group != flags|brands|extras|signs"


def get_config(argument: str | None = None) -> ConfigDict:
    tiny = options(argument, size=("tiny", "test")).size == "tiny"
    config = defaults()
    config.task = "contrastive"
    config.text = dict(minilm=dict(length=16, path=""))
    config.judge = dict(
        widths=(48, 96, 192) if tiny else (8, 8),
        blocks=2 if tiny else 1,
        width=128 if tiny else 8,
        groups=8 if tiny else 4,
    )
    config.groups = dict(
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
    config.data.train = dict(
        openmoji=source("emoji/openmoji", select=PICTURES, weight=0.4),
        fluent=source("emoji/fluent", select=PICTURES, weight=0.35),
        noto=source("emoji/noto", select="part == tuned and group != flags|signs", weight=0.25),
    )
    config.data.validation = dict(
        kept_unseen=dict(
            noto=source("emoji/noto", select="part == kept and group != flags|signs"),
        ),
        held_out=dict(
            openmoji=source("emoji/openmoji", select="part == held_out"),
            fluent=source("emoji/fluent", select="part == held_out"),
        ),
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
