"""What the page has drawn, on disk: a folder for each command, and a JSON line for each image."""

import base64
import binascii
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu_jax.data.decode import open_image
from emu_jax.data.images import compose, upright
from emu_jax.errors import UserError

INDEX_FILE = "history.jsonl"
_DATA = "base64,"  # before the bytes of a data URL
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Record:
    """An image: its file in the folder of the history, and how it was made."""

    file: str
    seed: int
    prompt: str
    model: str
    command: str
    time: str


class History:
    """The folder of a history."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def new_folder(self) -> Path:
        """An empty folder for what a command writes: 0001, 0002, ..."""
        with self._lock:
            used = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
            folder = self.folder / f"{max(used, default=0) + 1:04d}"
            folder.mkdir()
        return folder

    def add(self, folder: Path, command: str) -> list[Record]:
        """Writes down the images that a command has left in a folder, in the order of their seeds.
        They are the PNG files whose metadata have a seed.
        """
        found = []
        for file in sorted(folder.glob("*.png")):
            about = open_image(file.read_bytes()).info
            if "seed" in about:
                now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                made_by = about.get("prompt", ""), about.get("model", ""), command, now
                name = file.relative_to(self.folder).as_posix()
                found.append(Record(name, int(about["seed"]), *made_by))
        found.sort(key=lambda record: record.seed)
        with self._lock, (self.folder / INDEX_FILE).open("a") as index:
            index.writelines(f"{json.dumps(asdict(record))}\n" for record in found)
        return found

    def records(self) -> list[Record]:
        """All images that are still there, the newest first. A damaged line is left out."""
        index = self.folder / INDEX_FILE
        if not index.exists():
            return []
        found = [_record(line) for line in index.read_text(errors="replace").splitlines()]
        return [one for one in reversed(found) if one and self._has(one.file)]

    def image(self, record: Record) -> bytes:
        """The file of an image."""
        return (self.folder / record.file).read_bytes()

    def keep(self, folder: Path, photo: str, mask: str) -> Iterator[str]:
        """Writes a photograph and a mask, sent by a browser as data URLs, as PNG files into a
        folder, and gives their paths; an empty mask is none.

        Raises:
          UserError: one is no image of at most 67 megapixels.
        """
        image = upright(_decoded(photo, "The photograph"))
        kept = image.convert("RGBA") if _transparent(image) else compose(image, _WHITE)
        yield _saved(kept, folder / "photo.png")
        if mask:
            painted = np.asarray(_decoded(mask, "The mask").convert("RGBA"))[..., 3] > 127
            yield _saved(Image.fromarray(painted.astype(np.uint8) * 255), folder / "mask.png")
        else:
            yield ""

    def _has(self, file: str) -> bool:
        path = (self.folder / file).resolve()
        return path.is_relative_to(self.folder.resolve()) and path.is_file()


def _record(line: str) -> Record | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        return Record(**{**entry, "seed": int(entry["seed"]), "file": str(entry["file"])})
    except (ValueError, TypeError, KeyError):
        return None


def _decoded(url: str, what: str) -> Image.Image:
    try:
        return open_image(base64.b64decode(url.partition(_DATA)[2], validate=True))
    except binascii.Error as error:
        raise UserError(f"{what} did not arrive whole; choose it again.") from error
    except UserError as error:
        raise UserError(f"{what} cannot be used: {error}.") from error


def _transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and not image.mode.startswith(("I", "F"))


def _saved(image: Image.Image, file: Path) -> str:
    image.save(file)
    return str(file)
