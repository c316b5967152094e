"""The curation funnel: from a pool of images to the needles of quality-tuning (docs/curation.md).

    emu-jax data curate --config=configs/curation.py --config.source.path=POOL --out=runs/funnel

size=web: photographs, as in Emu (arXiv 2309.15807): published networks by path (docs/metrics.md),
    200,000 images of at least 1,024 pixels for people to judge; thresholds are starting points
size=small: drawings, with the networks of packages and the shipped judge; it is tried on the noisy
    pool of `bash launch/study.sh curation`
source=webdataset, parquet, folder or dataset
choose=funnel, or sample: no filters, and --config.steps.sample.count images at random
labels=yes: the pool is that of `emu-jax data pool`: precision and recall of steps are measured

Every filter and step is optional: remove it here, or add it by its keys.
"""

from ml_collections import ConfigDict

from emu_jax.assembly.config import options
from emu_jax.assembly.schema import section
from emu_jax.curation.sections import Curation, steps

CONCEPTS = (
    "portrait",
    "people",
    "food",
    "animal",
    "landscape",
    "city",
    "interior",
    "car",
    "object",
)
# Concepts of drawings, and what the judge reads for each.
DRAWN = {
    "animal": "dog|cat|bird|fish|insect|horse",
    "food": "apple|bread|cake|vegetable|drink",
    "person": "person|woman|man|face",
    "place": "house|building|mountain|city",
    "transport": "car|train|airplane|ship",
    "object": "tool|book|computer|clothes|ball",
    "sign": "sign|arrow|letter|symbol|flag",
}


def get_config(argument: str | None = None) -> ConfigDict:
    kinds = ("webdataset", "parquet", "folder", "dataset")
    chosen = options(
        argument,
        size=("small", "web"),
        source=kinds,
        choose=("funnel", "sample"),
        labels=("no", "yes"),
    )
    where = "name" if chosen.source == "dataset" else "path"
    source: dict = {"kind": chosen.source, where: ""}
    if chosen.labels == "yes":
        source["texts"] = ("fault", "origin")
    if chosen.choose == "sample":
        sample = dict(kind="sample", count=1000)
        return section(Curation, source=source, steps=steps(sample=sample))
    config = _web(source) if chosen.size == "web" else _small(source)
    if chosen.labels == "yes":
        config.labels, config.steps.duplicates.origin = "fault", "origin"
    return config


def _small(source: dict) -> ConfigDict:
    return section(
        Curation,
        source=source,
        side=256,
        filters=dict(
            shape={},
            focus={},
            hash={},
            offensive={},
            text={},
            embedding={},
            concept=dict(names=tuple(DRAWN), texts=tuple(DRAWN.values())),
            match={},
        ),
        steps=steps(
            size=dict(kind="threshold", column="short_side", at_least=64, removes="small"),
            aspect=dict(kind="threshold", column="aspect", at_most=2.0),
            offensive=dict(kind="threshold", column="offensive", at_most=0.8),
            text=dict(kind="threshold", column="words", at_most=1.0, removes="text|watermark"),
            blur=dict(
                kind="threshold",
                column="acutance",
                at_least=0.3,
                keep_missing=True,
                removes="blurred",
            ),
            caption=dict(kind="threshold", column="match", at_least=0.25, removes="wrong caption"),
            duplicates=dict(kind="duplicates", match="both", weights=dict(acutance=1.0)),
            balance=dict(kind="balance", cap=400, weights=dict(match=1.0)),
            top=dict(kind="top", count=1000, floor=5, weights=dict(match=1.0, acutance=1.0)),
        ),
        report=dict(by="concept"),
    )


def _web(source: dict) -> ConfigDict:
    clip = "~/emu_jax_weights/clip-vit-base-patch32"
    return section(
        Curation,
        source=source,
        batch_size=64,
        filters=dict(
            shape={},
            focus={},
            hash={},
            offensive={},
            text={},
            aesthetic={},
            clip_score={},
            embedding=dict(model=clip),
            concept=dict(names=CONCEPTS, model=clip),
        ),
        steps=steps(
            offensive=dict(kind="threshold", column="offensive", at_most=0.3),
            aesthetic=dict(kind="threshold", column="aesthetic", at_least=5.5),
            text=dict(kind="threshold", column="words", at_most=5.0),
            caption=dict(kind="threshold", column="clip_score", at_least=0.28),
            size=dict(kind="threshold", column="short_side", at_least=1024),
            aspect=dict(kind="threshold", column="aspect", at_most=2.0),
            blur=dict(kind="threshold", column="acutance", quantile_at_least=0.2),
            exposure=dict(kind="threshold", column="clipped", at_most=0.3),
            duplicates=dict(kind="duplicates", match="either", weights=dict(aesthetic=1.0)),
            balance=dict(kind="balance", cap=50_000, weights=dict(aesthetic=1.0)),
            top=dict(kind="top", count=200_000, floor=2_000, weights=dict(aesthetic=1.0)),
        ),
        report=dict(by="concept"),
    )
