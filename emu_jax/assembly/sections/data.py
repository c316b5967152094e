"""``config.data``: images and captions, mixtures, streams and caches."""

from collections.abc import Iterator
from dataclasses import dataclass

from emu_jax.assembly.schema import Section, key, required
from emu_jax.data.places import DEFAULT_DATA_DIR

MAX_SIDE = 16384
MAX_BATCH = 2**20


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """A data set as a part of a mixture."""

    dataset: str = required(
        "Name of a built data set, e.g. emoji/fluent or folder/mine.", filled=True
    )
    select: str = key("", "Condition on the manifest's columns; empty: all records.")
    captions: str = key(
        "captions", "The manifest's column of captions, e.g. complex of scenes.", filled=True
    )
    weight: float = key(1.0, "Share of the mixture, relative to the other weights.", above=0)


@dataclass(frozen=True, kw_only=True)
class Stream(Section):
    """A further training stream beside ``data.train``, with batches of its own."""

    sources: dict[str, Source] = required("The mixture.", filled=True)
    batch_size: int = key(
        0, "Images in a batch, over all hosts; 0: train.batch_size.", at_least=0, at_most=MAX_BATCH
    )
    image_size: int = key(0, "Side in pixels; 0: data.image_size.", at_least=0, at_most=MAX_SIDE)
    flip: bool | None = key(None, "Mirror half of the images; None: as data.flip.")
    random_crop: bool | None = key(None, "Crop at random; None: as data.random_crop.")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """What a run is trained and validated on."""

    data_dir: str = key(DEFAULT_DATA_DIR, "Folder of the built data sets.", filled=True, path=True)
    image_size: int = key(
        64,
        "Side in pixels; with buckets, of the square whose area no shape exceeds.",
        at_least=1,
        at_most=MAX_SIDE,
    )
    buckets: bool = key(False, "Keep aspect ratios: a batch has one of several shapes.")
    bucket_step: int = key(64, "Sides of buckets are multiples of it.", at_least=1)
    background: tuple[int, int, int] = key(
        (255, 255, 255), "Color behind transparent images, RGB.", at_least=0, at_most=255
    )
    random_crop: bool = key(False, "Crop at random; False: the center.")
    flip: bool = key(True, "Mirror half of the images.")
    scaled_decoding: bool = key(
        False, "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, other pixels."
    )
    workers: int = key(
        0, "Reading processes; 0: threads of the main process.", at_least=0, at_most=1024
    )
    threads: int = key(2, "Reading threads in each process.", at_least=1, at_most=1024)
    cache_dir: str = key(
        f"{DEFAULT_DATA_DIR}/cache", "Folder of the caches.", filled=True, path=True
    )
    cache_latents: bool = key(False, "Encode every image once and keep its latents.")
    cache_text: bool = key(False, "Encode every caption once and keep its states.")
    train: dict[str, Source] = required("The mixture of the stream train.", filled=True)
    validation: dict[str, dict[str, Source] | dict[str, dict[str, Source]]] = key(
        dict, "Validation sets: sources of the stream train, or sources by name of a stream."
    )
    streams: dict[str, Stream] = key(dict, "Further training streams by name.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if "train" in self.streams:
            yield "streams", "a name other than train, which is data.train"
