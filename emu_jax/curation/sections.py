"""The sections of a config of curation (``configs/curation.py``)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from ml_collections import ConfigDict

from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.schema import Ordered, Section, key, required
from emu_jax.curation.registry import FILTERS, SOURCES, STEPS
from emu_jax.data.places import DEFAULT_DATA_DIR

JUDGE = "builtin:judge_64"
CAPTIONS = ("captions", "caption", "text", "txt")


def steps(**entries: Mapping[str, object]) -> ConfigDict:
    """``config.steps``: the steps in their order."""
    return Ordered({name: dict(entry) for name, entry in entries.items()})


# Sources -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Said(Section):
    """What a source says of an image."""

    captions: tuple[str, ...] = key(
        CAPTIONS, "Columns with captions, the best first: those by hand, say."
    )
    numbers: tuple[str, ...] = key((), "Further columns of numbers that are kept.")
    texts: tuple[str, ...] = key((), "Further columns of texts that are kept.")


@dataclass(frozen=True, kw_only=True)
class WebDataset(Said):
    """Tars as img2dataset writes them; ``txt`` is the column of ``NAME.txt``, others are of
    ``NAME.json``.
    """

    kind: Literal["webdataset"] = key("webdataset", "The source.")
    path: str = required("A folder of .tar files, or a pattern such as DIR/0*.tar.", path=True)


@dataclass(frozen=True, kw_only=True)
class Parquet(Said):
    """Tables with images, or with paths of images."""

    kind: Literal["parquet"] = key("parquet", "The source.")
    path: str = required("A folder of .parquet files, or a pattern.", path=True)
    image: str = key(
        "image", "Column of bytes, of {bytes, path}, or of paths inside the folder.", filled=True
    )
    key_column: str = key("", "Column that names an image; empty: its row.")


@dataclass(frozen=True, kw_only=True)
class Folder(Said):
    """A folder of images with captions beside them, as of ``emu-jax data build folder/NAME``."""

    kind: Literal["folder"] = key("folder", "The source.")
    path: str = required("The folder.", path=True)
    shard_size: int = key(10_000, "Images of a shard.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class DataSet(Said):
    """A built data set, such as one that people have judged."""

    kind: Literal["dataset"] = key("dataset", "The source.")
    name: str = required("Its name, e.g. folder/seen.")
    data_dir: str = key(DEFAULT_DATA_DIR, "Folder of the data sets.", filled=True, path=True)
    select: str = key("", "Condition on the manifest's columns; empty: all records.")
    shard_size: int = key(10_000, "Images of a shard.", at_least=1)


# Filters -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Aesthetic(Section):
    """``aesthetic``: LAION's predictor, 1 to 10."""

    kind: Literal["aesthetic"] = key("aesthetic", "The filter.")
    weights: str = key("", "Folder of published weights; empty: EMU_JAX_WEIGHTS.", path=True)


@dataclass(frozen=True, kw_only=True)
class ClipScore(Section):
    """``clip_score``: the cosine of an image and its first caption by CLIP ViT-B/32."""

    kind: Literal["clip_score"] = key("clip_score", "The filter.")
    weights: str = key("", "Folder of published weights; empty: EMU_JAX_WEIGHTS.", path=True)


@dataclass(frozen=True, kw_only=True)
class Concept(Section):
    """``concept`` and ``concept_probability``: of named texts the one that fits best."""

    kind: Literal["concept"] = key("concept", "The filter.")
    names: tuple[str, ...] = required("The concepts, two or more.", filled=True)
    texts: tuple[str, ...] = key(
        (), "A text of each, several separated by |; empty: template with the name."
    )
    template: str = key("a photo of {}", "What is said of a name.", filled=True)
    model: str = key(JUDGE, "A judge, or the folder of a CLIP.", filled=True, path=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.names) < 2:
            yield "names", "two names or more"
        if self.texts and len(self.texts) != len(self.names):
            yield "texts", f"{len(self.names)} texts, one for each name, or none"


@dataclass(frozen=True, kw_only=True)
class Embedding(Section):
    """``embedding`` and ``embedding_hash``, for near-duplicates."""

    kind: Literal["embedding"] = key("embedding", "The filter.")
    model: str = key(JUDGE, "A judge, or the folder of a CLIP.", filled=True, path=True)


@dataclass(frozen=True, kw_only=True)
class Focus(Section):
    """``sharpness``, ``acutance``, ``brightness`` and ``clipped``."""

    kind: Literal["focus"] = key("focus", "The filter.")
    side: int = key(512, "Longer side to which larger images are reduced.", at_least=16)


@dataclass(frozen=True, kw_only=True)
class Hash(Section):
    """``hash``: 64 bits that near-duplicates share."""

    kind: Literal["hash"] = key("hash", "The filter.")


@dataclass(frozen=True, kw_only=True)
class Match(Section):
    """``match``: the cosine of an image and the caption that fits it best."""

    kind: Literal["match"] = key("match", "The filter.")
    model: str = key(JUDGE, "A judge, or the folder of a CLIP.", filled=True, path=True)


@dataclass(frozen=True, kw_only=True)
class Nudity(Section):
    """``nudity``: the highest confidence of an exposed part of the body, by NudeNet."""

    kind: Literal["nudity"] = key("nudity", "The filter.")
    path: str = key("", "Another ONNX file of the detector; empty: the package's.", path=True)


@dataclass(frozen=True, kw_only=True)
class Offensive(Section):
    """``offensive``: the probability that an image is not safe for work, by open_nsfw."""

    kind: Literal["offensive"] = key("offensive", "The filter.")
    path: str = key("", "Another ONNX file of the same form; empty: the package's.", path=True)


@dataclass(frozen=True, kw_only=True)
class Popularity(Section):
    """``popularity``: log(1 + x) of a number of the source, such as likes."""

    kind: Literal["popularity"] = key("popularity", "The filter.")
    column: str = required("One of source.numbers.", filled=True)


@dataclass(frozen=True, kw_only=True)
class Shape(Section):
    """``short_side`` in pixels and ``aspect``, 1 or more."""

    kind: Literal["shape"] = key("shape", "The filter.")


@dataclass(frozen=True, kw_only=True)
class Text(Section):
    """``words`` and ``text_share``, the share of the area, by OCR."""

    kind: Literal["text"] = key("text", "The filter.")
    side: int = key(320, "Shorter side at which images are read.", at_least=32, at_most=4096)
    recognize: bool = key(True, "Read the words; False: lines that look like text are counted.")
    confidence: float = key(0.6, "Least confidence of a line that was read.", at_least=0, at_most=1)


# Steps -------------------------------------------------------------------------------------------

Weights = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Removing(Section):
    """What every step has."""

    removes: str = key("", "Faults of labels that the step is to find, separated by |.")


@dataclass(frozen=True, kw_only=True)
class Threshold(Removing):
    """Leaves out images whose score lies outside a range."""

    kind: Literal["threshold"] = key("threshold", "The step.")
    column: str = required("The score.", filled=True)
    at_least: float | None = key(None, "The smallest value that stays.")
    at_most: float | None = key(None, "The largest value that stays.")
    quantile_at_least: float | None = key(
        None, "The same as a quantile of the images that are left.", at_least=0, at_most=1
    )
    quantile_at_most: float | None = key(
        None, "The same as a quantile of the images that are left.", at_least=0, at_most=1
    )
    keep_missing: bool = key(False, "Images without the score stay.")

    def problems(self) -> Iterator[tuple[str, str]]:
        bounds = (self.at_least, self.at_most, self.quantile_at_least, self.quantile_at_most)
        if bounds == (None,) * 4:
            yield "at_least", "a number here or for another bound"


@dataclass(frozen=True, kw_only=True)
class Duplicates(Removing):
    """Of near-duplicates the best one stays."""

    kind: Literal["duplicates"] = key("duplicates", "The step.")
    match: Literal["hash", "embedding", "both", "either"] = key("hash", "What must agree.")
    distance: int = key(4, "Bits of 64 in which hashes may differ.", at_least=0, at_most=32)
    cosine: float = key(0.95, "Least cosine of embeddings.", at_least=-1, at_most=1)
    bands: Literal[1, 2, 4, 8, 16] = key(
        8, "Parts of a hash, of which one must be equal for two images to be compared."
    )
    weights: Weights = key(dict, "Weights of scores, for the best one; empty: at random.")
    seed: int = key(0, "Seed of what is at random.", at_least=0)
    origin: str = key("", "Column of texts, equal for true duplicates, to measure the step.")


@dataclass(frozen=True, kw_only=True)
class Balance(Removing):
    """Of every concept at most so many images stay, the best ones."""

    kind: Literal["balance"] = key("balance", "The step.")
    cap: int = required("The number.", at_least=1)
    column: str = key("concept", "Column of the concepts.", filled=True)
    weights: Weights = key(dict, "Weights of scores, for the best ones; empty: at random.")
    seed: int = key(0, "Seed of what is at random.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Top(Removing):
    """The best images stay."""

    kind: Literal["top"] = key("top", "The step.")
    count: int = required("Their number.", at_least=1)
    weights: Weights = key(dict, "Weights of scores; empty: at random.")
    floor: int = key(0, "Images of every concept that stay at least.", at_least=0)
    column: str = key("concept", "Column of the concepts.", filled=True)
    seed: int = key(0, "Seed of what is at random.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Sample(Removing):
    """So many images stay, at random."""

    kind: Literal["sample"] = key("sample", "The step.")
    count: int = required("Their number.", at_least=1)
    seed: int = key(0, "Seed.", at_least=0)


# The whole ---------------------------------------------------------------------------------------

SourceSection = Annotated[Section, Kinds(SOURCES, WebDataset, Parquet, Folder, DataSet)]
FilterSection = Annotated[
    Section,
    Kinds(
        FILTERS,
        *(Aesthetic, ClipScore, Concept, Embedding, Focus, Hash, Match, Nudity, Offensive),
        *(Popularity, Shape, Text),
    ),
]
StepSection = Annotated[Section, Kinds(STEPS, Threshold, Duplicates, Balance, Top, Sample)]


@dataclass(frozen=True, kw_only=True)
class Upsample(Section):
    """What enlarges chosen images that are too small."""

    checkpoint: str = key(
        "", "A super-resolution run or model, A+B for a cascade; empty: no image.", path=True
    )
    short_side: int = key(0, "Images with a smaller short side are enlarged; 0: none.", at_least=0)
    seed: int = key(0, "Seed of the noise.", at_least=0)
    steps: int = key(0, "Number of sampling steps; 0: the model's own.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Report(Section):
    """What the report shows."""

    by: str = key("", "Column of text by which the funnel is counted; empty: none.")
    images: int = key(12, "Images in a row.", at_least=2, at_most=40)
    groups: int = key(12, "Groups of near-duplicates.", at_least=0, at_most=200)
    shards: int = key(8, "Shards from which images are taken.", at_least=1)
    side: int = key(96, "Side of an image, pixels.", at_least=16, at_most=512)
    seed: int = key(0, "Seed of the images that are shown.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Curation(Section):
    """A pool, how its images are scored, and how they are chosen."""

    name: str = key("needles", "The data set that is built is curated/NAME.", filled=True)
    source: SourceSection = required("The pool.")
    side: int = key(
        768, "Longer side in pixels to which images are reduced for filters.", at_least=32
    )
    background: tuple[int, int, int] = key(
        (255, 255, 255), "Color behind transparent images, RGB.", at_least=0, at_most=255
    )
    batch_size: int = key(32, "Images that a filter gets at once.", at_least=1, at_most=4096)
    filters: dict[str, FilterSection] = key(dict, "What is computed of every image.")
    steps: dict[str, StepSection] = required("How images are chosen, in this order.", ordered=True)
    upsample: Upsample = key(Upsample, "What enlarges chosen images that are too small.")
    labels: str = key(
        "", "Column of text with known faults, against which steps are measured; empty: none."
    )
    report: Report = key(Report, "What the report shows.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.name.isidentifier():
            yield "name", "letters, digits and _"
        for name in self.filters:
            if not name.isidentifier() or name == "images":
                yield f"filters.{name}", "a name of letters, digits and _, and not images"
