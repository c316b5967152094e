"""A noisy pool with known faults, to try a funnel on: shards as img2dataset writes them.

Of images of built data sets some are stored as they are, and others with one fault:

    fault           what is wrong
    duplicate       an image that is in the pool, in another size, quality and slightly other colors
    watermark       letters all over the image, half transparent
    text            a part of the image is covered by lines of text
    blurred         out of focus
    wrong caption   the captions of another concept, of the same group where there is one
    small           36 to 56 pixels wide
    damaged         the file is cut off

The JSON of a sample says its ``fault`` (empty: none), its ``group``, and its ``origin``, equal for
images of one drawing; and it has ``likes``, which say nothing of its quality.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from etils import epath
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from emu_jax.curation.scores import write_bytes
from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.data.mixture import Selection
from emu_jax.data.source import open_source
from emu_jax.errors import UserError

FAULTS = ("duplicate", "watermark", "text", "blurred", "wrong caption", "small", "damaged")
_WORDS = (
    *("sample", "stock", "photo", "copyright", "buy", "now", "sale"),
    *("free", "price", "offer", "news", "today", "best", "new"),
)
_LABEL, _GROUP = "concept", "group"  # columns: what an image shows, and its kind


class _Drawing(NamedTuple):
    data: bytes
    captions: list[str]
    origin: str
    concept: str
    group: str


class _Sample(NamedTuple):
    image: bytes
    suffix: str
    caption: str
    about: dict[str, object]


def write_pool(
    names: Sequence[str],
    data_dir: str,
    out: epath.PathLike,
    *,
    count: int = 1000,
    share: float = 0.08,
    faults: Sequence[str] = FAULTS,
    shard_size: int = 250,
    select: str = "",
    seed: int = 0,
) -> dict[str, int]:
    """Writes ``count`` images, of which each of ``faults`` has ``share``; returns how many have
    which.

    Raises:
      UserError: the data sets have too few images.
    """
    faulty = round(count * share)
    clean = count - faulty * len(faults)
    if clean < faulty:
        raise UserError(f"A share of {share} of {len(faults)} faults leaves too few clean images.")
    copies = faulty if "duplicate" in faults else 0
    drawings = _drawings(names, data_dir, select, count - copies, seed)
    kinds = [""] * clean + [fault for fault in faults for _ in range(faulty)]
    # Copies are of clean images; every other image is one of its own.
    own = iter(drawings)
    bases = [next(own) for _ in range(clean)]
    bases += [
        bases[i % clean] if fault == "duplicate" else next(own)
        for i, fault in enumerate(kinds[clean:])
    ]
    samples = [
        _spoiled(base, fault, bases, Random(f"{seed} {i}"))
        for i, (base, fault) in enumerate(zip(bases, kinds, strict=True))
    ]
    Random(seed).shuffle(samples)
    folder = epath.Path(out).expanduser()
    for shard, start in enumerate(range(0, count, shard_size)):
        part = samples[start : start + shard_size]
        write_bytes(_tar(part, start), folder / f"{shard:05d}.tar")
    return {kind or "clean": kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _drawings(
    names: Sequence[str], data_dir: str, select: str, count: int, seed: int
) -> Iterator[_Drawing]:
    """``count`` different images of the data sets, in random order."""
    places: list[tuple[Selection, int]] = []
    for name in names:
        selection = Selection(open_source(name, data_dir), select=select)
        texts = selection.texts()
        places += [(selection, int(i)) for i in selection.records() if texts[int(i)]]
    if len(places) < count:
        raise UserError(
            f"The data sets have {len(places)} captioned images, and {count} are needed: lower "
            "--count or name more data sets."
        )
    Random(f"{seed} drawings").shuffle(places)
    for selection, i in places[:count]:
        manifest = selection.source.manifest
        key = str(manifest.column("key")[i])
        known = {n: str(manifest.column(n)[i]) for n in (_LABEL, _GROUP) if n in manifest.columns}
        concept, group = known.get(_LABEL, key), known.get(_GROUP, "")
        origin = f"{selection.source.name}/{key}"
        texts = list(selection.texts()[i])
        yield _Drawing(selection.source.read(i), texts, origin, concept, group)


def _spoiled(base: _Drawing, fault: str, others: Sequence[_Drawing], random: Random) -> _Sample:
    image = compose(upright(open_image(base.data)), (255, 255, 255))
    captions, quality = list(base.captions), 92
    if fault in _CHANGES:
        image = _CHANGES[fault](image, random)
    if fault == "duplicate":
        quality = random.randint(60, 85)
    elif fault == "wrong caption":
        strangers = [one for one in others if one.concept != base.concept]
        alike = [one for one in strangers if one.group == base.group]
        captions = list(random.choice(alike or strangers).captions)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    data = stream.getvalue()
    if fault == "damaged":
        data = data[: len(data) // random.randint(2, 20)]
    about = {
        "captions": captions,
        "fault": fault,
        "origin": base.origin,
        "group": base.group,
        "likes": int(random.paretovariate(0.8)),
        "status": "success",
    }
    return _Sample(data, "jpg", captions[0], about)


def _copied(image: Image.Image, random: Random) -> Image.Image:
    side = round(image.width * random.uniform(0.7, 1.5))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    return ImageEnhance.Color(image).enhance(random.uniform(0.85, 1.15))


def _watermarked(image: Image.Image, random: Random) -> Image.Image:
    size = round(image.width * random.uniform(0.1, 0.16))
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw, font = ImageDraw.Draw(layer), ImageFont.load_default(size)
    word = random.choice(_WORDS).upper()
    for y in range(size, image.height, round(2.2 * size)):
        draw.text((random.randint(-size, size), y), f"{word}  {word}", (90, 90, 90, 150), font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _covered(image: Image.Image, random: Random) -> Image.Image:
    image, size = image.copy(), round(image.width * random.uniform(0.11, 0.16))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    top, lines = random.randint(0, image.height // 3), random.randint(2, 4)
    draw.rectangle((0, top, image.width, top + round(1.3 * size * lines)), fill="white")
    for line in range(lines):
        text = " ".join(random.sample(_WORDS, 2))
        draw.text((4, top + line * round(1.3 * size)), text, "black", font)
    return image


def _blurred(image: Image.Image, random: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width * random.uniform(0.015, 0.04)))


def _small(image: Image.Image, random: Random) -> Image.Image:
    side = random.randint(36, 56)
    return image.resize((side, side), Image.Resampling.LANCZOS)


_CHANGES: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "duplicate": _copied,
    "watermark": _watermarked,
    "text": _covered,
    "blurred": _blurred,
    "small": _small,
}


def _tar(samples: Sequence[_Sample], first: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, first):
            for suffix, data in (
                (sample.suffix, sample.image),
                ("txt", sample.caption.encode()),
                ("json", json.dumps(sample.about).encode()),
            ):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()
