"""A tagger: which words apply to an image? It judges generators that feedback has taught.

    emu-jax data build faulty/noto
    emu-jax train --config=configs/tagger.py:size=tiny --workdir=runs/tagger

words=faults: in which of the dimensions color, layout, lighting and detail has the image a fault?
    Trained on drawings of a style that generators are not trained on (Noto), so that it is
    independent of them and of rewards

style=fluent, style=openmoji: faults in drawings of another style, for machines without the font

words=finish: which of six finishes (data set `finishes/six`) has the image?

size=tiny: 64 x 64 pixels, 2.0 M parameters; half of the images pass the shipped autoencoder,
    because it is to read generated images; 1,500 steps of 64
    hardware  2 CPU cores
    time, result  not measured
size=test: a few thousand parameters, for tests
"""

from ml_collections import ConfigDict

from emu_jax.assembly.config import group, groups, options, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import AutoencoderCodec
from emu_jax.assembly.sections.runs import Tagging
from emu_jax.assembly.sections.segmentation import Tagger, Tags
from emu_jax.data.dimensions import DIMENSIONS, FINISHES
from emu_jax.errors import UserError


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=("tiny", "test"),
        words=("faults", "finish"),
        style=("", "noto", "fluent", "openmoji"),
    )
    tiny = chosen.size == "tiny"
    config = section(Tagging)
    faults = chosen.words == "faults"
    if chosen.style and not faults:
        raise UserError("style is only available for words=faults: words=finish has all styles.")
    config.tags = section(
        Tags,
        column="dimensions" if faults else "finish",
        words=DIMENSIONS if faults else FINISHES,
        round_trip=0.5 if tiny else 0.0,
    )
    if tiny:
        config.codec = section(AutoencoderCodec, path="builtin:autoencoder_64")
    else:
        config.tagger = section(Tagger, widths=(8, 8), blocks=1, groups=4)
    config.groups = groups(
        tagger=group(
            "",
            ema_decay=0.99,
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100 if tiny else 1,
            final=0.02,
            weight_decay=0.1,
        )
    )
    config.data.flip = False
    drawn = f"faulty/{chosen.style or 'noto'}" if faults else "finishes/six"
    # Judged prompts are of the concepts kept: it learns from others.
    config.data.train = dict(drawn=source(drawn, select="part == tuned and group != flags|signs"))
    config.data.validation = dict(
        unseen=dict(drawn=source(drawn, select="part == kept and group != flags|signs"))
    )
    config.train.update(
        dict(
            seed=1,
            steps=1500 if tiny else 4,
            batch_size=64 if tiny else 4,
            log_every=50 if tiny else 1,
            validate_every=250 if tiny else 2,
            preview_every=1500 if tiny else 0,
            checkpoint_every=100 if tiny else 2,
        )
    )
    return config
