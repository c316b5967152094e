"""The images that condition a generator beside its prompts: from files, or those of the prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from emu_jax.assembly.starting import Placement, StartImage, resized, to_pixels
from emu_jax.data.decode import open_image
from emu_jax.data.further import COMPUTED, is_labels, prepare_further
from emu_jax.data.images import Color, upright, view
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet

Image = UInt8[np.ndarray, "h w *c"]
_HINT, _CANNY = "hint:", "canny:"


class Shown(Protocol):
    """How a model takes an image beside the prompt: ``shown(data, name)``. ``own`` are those that
    it has where no file is given.
    """

    @property
    def own(self) -> Mapping[str, Image]: ...

    def __call__(self, data: bytes, name: str) -> Image: ...


@dataclass(frozen=True)
class Cropped:
    """In the middle of ``size``, (height, width); of labels the marked half, 0 or 255."""

    size: tuple[int, int]
    background: Color
    own: Mapping[str, Image] = field(default_factory=dict)

    def __call__(self, data: bytes, name: str) -> Image:
        original = upright(open_image(data))
        own = (original.height, original.width)
        shown = view(own, self.size, random_crop=False, flip=False, seed=0)
        image = prepare_further(data, name, shown, self.background)
        return np.where(image > 127, 255, 0).astype(np.uint8) if is_labels(name) else image


@dataclass(frozen=True)
class Laid:
    """Where a ``start`` image is ``placed``, at 1 / ``factor`` of the size; a hint that can be
    computed is that image's.
    """

    start: StartImage
    placed: Placement
    factor: int
    background: Color

    @property
    def own(self) -> dict[str, Image]:
        laid = self._lay(self.start.image)
        return {name: compute(laid) for name, compute in COMPUTED.items()}

    def __call__(self, data: bytes, name: str) -> Image:
        laid = self._lay(to_pixels(upright(open_image(data)), self.background))
        return COMPUTED[name](laid) if name in COMPUTED else laid

    def _lay(self, image: UInt8[np.ndarray, "_ _ 3"]) -> Image:
        height, width = self.placed.shape
        return resized(self.placed.lay(image), (height // self.factor, width // self.factor))


@dataclass(frozen=True)
class Given:
    """Files by the name of a further image (:mod:`emu_jax.data.further`).

    ``control_image`` is the file of a ControlNet's hint, whatever its name: an image from which the
    hint is computed if the ControlNet's are computed, else the hint itself. ``hint:FILE`` is always
    the hint itself, and ``canny:FILE`` an image whose edges are the hint.

    What no file gives is that of the start image, where a hint can be computed, else that of the
    prompt's own record where there is one.
    """

    control_image: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def images(
        self, names: Sequence[str], hint: str, prompts: PromptSet, shown: Shown
    ) -> dict[str, list[Image]]:
        """An image of each of ``names`` for every prompt, as it is ``shown``.

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
                found[name] = [_read(file, name, shown)] * len(prompts)
            elif name in shown.own:
                found[name] = [shown.own[name]] * len(prompts)
            elif prompts.real is not None:
                source, computed = prompts.real.source, name in COMPUTED
                if not computed and name not in source.further:
                    raise UserError(f"{source.name} has no further image {name!r}; name a file.")
                found[name] = [
                    shown(source.read(record, "" if computed else name), name)
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


def _read(file: str, name: str, shown: Shown) -> Image:
    for prefix, kind in ((_HINT, "other"), (_CANNY, "canny")):
        if file.startswith(prefix):
            file, name = file.removeprefix(prefix), kind
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    try:
        return shown(path.read_bytes(), name)
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used as {name}: {str(error).rstrip('.')}.") from error
