"""The parser: which things are where in an image? SOLO, on images whose instances are known.

    emu-jax data build scenes/openmoji && emu-jax data build scenes/fluent
    emu-jax train --config=configs/parser.py:size=tiny --workdir=runs/parser

size=tiny: 64 x 64 pixels, the 60 things of scenes, one level of 8 x 8 cells, 0.9 M parameters
    hardware  2 CPU cores (AMD EPYC)
    time      28 images a second: 57 minutes. The measured run took 95, with other work beside
    result    3,060 test scenes after the shipped autoencoder: count right 97.5 % (of up to four
              things), every thing and no other 82.4 %, color 96.2 %; relation 97.9 % where the
              things are right, 78.1 % of all. After 2,500 steps more from this run
              (`--config.init_from=RUN --config.train.steps=2500`): 98.1 %, 89.9 %, 97.7 %; 99.3 %,
              84.7 %. That is the shipped `builtin:parser_64`
size=coco: the published network: ResNet-50, five levels, on a folder of the user in COCO's form
    (`emu-jax data build coco/train2017 --path=COCO`, and so val2017; docs/data.md), by default of
    COCO's 80 classes (`--config.labeled.classes`)
    hardware, time, result  not measured
size=test: a few thousand parameters, for tests

network=deeplab: DeepLab-V3 in place of SOLO, which gives every pixel a label: the teacher `layout`
    of configs/feedback.py. At size=tiny labels follow from the instances of scenes: 0 for the
    background, 1 to 60 for the things. At size=coco they are COCO-Stuff's 182, in the further image
    `mask`
    hardware, time, result  not measured

Half of the tiny parser's images pass the shipped autoencoder, because it is to read generated
images. Another seed (`--config.train.seed=1`) makes a second parser, so that the one that trains a
generator is not the one that judges it.
"""

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import group, groups, options
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import AutoencoderCodec
from emu_jax.assembly.sections.runs import Segmentation, SemanticSegmentation
from emu_jax.assembly.sections.segmentation import DeepLab, Labeled, Pixels, Solo
from emu_jax.data.coco_classes import CLASSES
from emu_jax.data.scenes_things import THINGS

# A person's action is one drawing, and no thing.
THINGS_OF = "split == {} and kind != person"


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(argument, size=("tiny", "test", "coco"), network=("solo", "deeplab"))
    size, solo = chosen.size, chosen.network == "solo"
    config = section(Segmentation if solo else SemanticSegmentation)
    config.groups = groups(
        parser=group(
            "",
            ema_decay=0.999,
            learning_rate=2e-3,
            schedule="cosine",
            warmup=100 if size == "tiny" else 1,
            final=0.02,
            weight_decay=1e-4,
        )
    )
    if size == "coco":
        return _coco(config, solo)
    tiny = size == "tiny"
    known = dict(classes=tuple(THINGS), round_trip=0.5 if tiny else 0.0)
    if solo:
        # Two things never have the same place.
        config.labeled = section(Labeled, score=0.2, agnostic=True, **known)
        config.solo = section(
            Solo,
            backbone="small",
            widths=(32, 64, 128) if tiny else (8, 8, 8),
            grids=(8,),
            width=64 if tiny else 8,
            depth=4 if tiny else 1,
            groups=8 if tiny else 4,
        )
    else:
        config.labeled = section(Pixels, **known)
        config.deeplab = section(
            DeepLab,
            depths=(1, 1, 1, 1),
            width=16 if tiny else 2,
            rates=(1, 2, 3),
            channels=64 if tiny else 8,
        )
    if tiny:
        config.codec = section(AutoencoderCodec, path="builtin:autoencoder_64")
    config.data.train = emoji.scenes(THINGS_OF.format("train"))
    config.data.validation = dict(unseen=emoji.scenes(THINGS_OF.format("validation")))
    config.train.update(
        dict(
            steps=1500 if tiny else 4,
            batch_size=64 if tiny else 4,
            log_every=50 if tiny else 1,
            validate_every=250 if tiny else 2,
            preview_every=250 if tiny else 0,
            checkpoint_every=100 if tiny else 2,
        )
    )
    return config


def _coco(config: ConfigDict, solo: bool) -> ConfigDict:
    """The published networks and batch size; AdamW in place of SGD, buckets of about 1,024 x 1,024
    pixels in place of 1,333 x 800. DeepLab: crops of 512 in place of 513.
    """
    known = "instances" if solo else "mask"
    if solo:
        config.labeled = section(Labeled, column="classes", classes=CLASSES, most=100, score=0.1)
        config.solo = section(Solo)
        config.data.update(dict(image_size=1024, buckets=True, bucket_step=128))
    else:
        config.labeled, config.deeplab = section(Pixels, mask=182), section(DeepLab)
        config.data.update(dict(image_size=512, random_crop=True))
    config.compute_dtype = "bfloat16"
    config.data.train = stages.coco("train2017", known)
    config.data.validation = dict(unseen=stages.coco("val2017", known))
    config.groups.parser.optimizer.update(dict(learning_rate=1e-4, warmup=500, weight_decay=0.05))
    config.train.update(dict(steps=90_000, batch_size=16, validate_every=5_000))
    return config
