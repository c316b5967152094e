"""The TFDS builder `prompts`: prompts without images, for training that draws its own.

    prompts/NAME --path=FILE    a table with a column `prompt` (.tsv, .csv), or .txt: one on a line

Feedback learning from noise, with `feedback.diffusion=0`, reads no image (docs/feedback.md). A
record's image is 64 x 64 white pixels; `emu-jax data prompts` writes such tables.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from emu_jax.data.builder import ImageBuilder
from emu_jax.data.images import png
from emu_jax.data.textfile import DELIMITERS, read_lines, read_table
from emu_jax.errors import UserError

SIDE = 64
_COLUMN = "prompt"


class Prompts(ImageBuilder):
    """See the module's docstring. `path`: the file."""

    @classmethod
    def named(cls, config: str, *, path: epath.PathLike | None = None, **kwargs: Any) -> "Prompts":
        file = epath.Path(path or "").expanduser()
        if path is None or not file.is_file():
            raise UserError(
                f"prompts/{config} needs a file of prompts, .txt, .tsv or .csv: give it with "
                "--path=FILE."
            )
        if not read_prompts(file):
            raise UserError(f"{file} has no prompts: write one on each line.")
        return cls(config=tfds.core.BuilderConfig(name=config), path=file, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info(
            description=f"The prompts of {self.path}.", license="That of the prompts."
        )

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        blank = png(Image.new("RGB", (SIDE, SIDE), "white"))
        for i, prompt in enumerate(read_prompts(epath.Path(self.path))):
            about = {"key": f"{i:08d}", "width": SIDE, "height": SIDE}
            yield blank, about | {"captions": [prompt], "source": str(self.path)}


def read_prompts(file: epath.Path) -> list[str]:
    """The prompts of a file, in its order.

    Raises:
      UserError: it is not UTF-8, no table, or a table without the column.
    """
    if file.suffix.lower() not in DELIMITERS:
        return [line for line in map(str.strip, read_lines(file)) if line]
    header, rows = read_table(file)
    if _COLUMN not in header:
        raise UserError(f"{file} has no column {_COLUMN!r}: name it in the first line.")
    index = header.index(_COLUMN)
    return [prompt for row in rows if (prompt := row[index].strip())]
