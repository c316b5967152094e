"""The images that condition a generator beside its prompts: from files, or those of the prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from emu_jax.data.decode import open_image
from emu_jax.data.further import COMPUTED, is_labels, prepare_further
from emu_jax.data.images import upright, view
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet

Image = UInt8[np.ndarray, "h w *c"]
_HINT, _CANNY = "hint:", "canny:"


@dataclass(frozen=True)
class Given:
    """Files by the name of a further image (:mod:`emu_jax.data.further`).

    ``control_image`` is the file of a ControlNet's hint, whatever its name: an image from which the
    hint is computed if the ControlNet's are computed, else the hint itself. ``hint:FILE`` is always
    the hint itself, and ``canny:FILE`` an image whose edges are the hint.

    What no file gives is that of the prompt's own record where there is one.
    """

    control_image: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def images(
        self,
        names: Sequence[str],
        hint: str,
        prompts: PromptSet,
        size: tuple[int, int],
        background: tuple[int, int, int],
    ) -> dict[str, list[Image]]:
        """An image of each of ``names`` for every prompt, in the size (height, width).

        ``hint`` is the name of a ControlNet's hint, "" without one.

        Raises:
          UserError: there is none of a name, or a file is given that the model does not take.
        """
        unknown = [name for name in self.files if name not in names]
        if self.control_image and not hint:
            raise UserError("--control_image is for a model with a ControlNet: add --control.")
        if unknown:
            raise UserError(
                f"This model takes no image {unknown[0]!r}; it takes "
                f"{', '.join(map(repr, names)) or 'none'}."
            )
        found = {}
        for name in names:
            file = self.control_image if name == hint else self.files.get(name, "")
            if file:
                image = _read(file, name, size, background)
                found[name] = [image] * len(prompts)
            elif prompts.real is not None:
                source, computed = prompts.real.source, name in COMPUTED
                if not computed and name not in source.further:
                    raise UserError(f"{source.name} has no further image {name!r}; name a file.")
                found[name] = [
                    _shown(source.read(record, "" if computed else name), name, size, background)
                    for record in prompts.real.records
                ]
            else:
                option = "--control_image=FILE" if name == hint else f"--given={name}=FILE"
                raise UserError(
                    f"This model is conditioned on the image {name!r} beside the prompt: add "
                    f"{option}, or use prompts of a data set that has it."
                )
        return found


NOTHING = Given()


def digests(images: Mapping[str, Sequence[Image]], row: int) -> dict[str, str]:
    """Identifies the images of one prompt."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(own[row]).tobytes()).hexdigest()[:16]
        for name, own in images.items()
    }


def _read(file: str, name: str, size: tuple[int, int], background: Any) -> Image:
    for prefix, kind in ((_HINT, "other"), (_CANNY, "canny")):
        if file.startswith(prefix):
            file, name = file.removeprefix(prefix), kind
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    try:
        return _shown(path.read_bytes(), name, size, background)
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used as {name}: {str(error).rstrip('.')}.") from error


def _shown(data: bytes, name: str, size: tuple[int, int], background: Any) -> Image:
    """The image in the middle of ``size``; of labels the marked half, 0 or 255."""
    original = upright(open_image(data))
    shown = view((original.height, original.width), size, random_crop=False, flip=False, seed=0)
    image = prepare_further(data, name, shown, background)
    return np.where(image > 127, 255, 0).astype(np.uint8) if is_labels(name) else image
