"""From the fields of the page to a command of ``emu-jax``: what runs is what the page shows."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from emu_jax.errors import UserError

ACTIONS = ("draw", "restyle", "backdrop", "stickers", "side by side")
OF_A_PHOTO = ("restyle", "backdrop")
CONTROLLED = ("draw", "restyle")
ALONE, PAINTED, BOXED = "what is found on its own", "what I paint", "in the box around the paint"
SUBJECTS = (ALONE, PAINTED, BOXED)
_LONGEST = 2000  # characters of a prompt


@dataclass(frozen=True)
class Command:
    """A command, and its arguments without ``--out``. ``words`` follow all options."""

    name: str
    options: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        dashed = any(word.startswith("-") for word in self.words)  # a word, not an option
        return [*self.options, *(["--"] if dashed else []), *self.words]

    @property
    def line(self) -> str:
        """As one types it into a shell."""
        return shlex.join(["emu-jax", self.name, *self.arguments])


@dataclass(frozen=True)
class Asked:
    """The fields of the page.

    ``steps``, ``guidance_scale`` and ``eta`` of None are the model's own. ``adapter``,
    ``text_adapter``, ``control`` and ``segmenter`` are empty where there is none.
    """

    action: str
    prompt: str
    checkpoint: str
    other: str = ""
    negative: str = ""
    seed: int = 0
    count: int = 4
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float = 0.6
    subject: str = ALONE
    segmenter: str = ""
    adapter: str = ""
    adapter_scale: float = 1.0
    text_adapter: str = ""
    eta: float | None = None
    control: str = ""
    control_strength: float = 1.0

    def __post_init__(self):
        if not self.prompt.strip():
            raise UserError("Write a prompt first: what the image shows.")
        if max(len(self.prompt), len(self.negative)) > _LONGEST:
            raise UserError(f"A prompt has at most {_LONGEST:,} characters; shorten it.")
        if self.control and self.action not in CONTROLLED:
            raise UserError(
                f"A ControlNet is for {' and '.join(CONTROLLED)}, not for {self.action}: "
                "choose none."
            )

    @property
    def needs_photo(self) -> bool:
        return self.action in OF_A_PHOTO or bool(self.control and self.action == "draw")

    @property
    def needs_paint(self) -> bool:
        return self.action == "backdrop" and self.subject != ALONE

    def commands(self, photo: str = "", mask: str = "") -> list[Command]:
        """What to run, one after the other; ``photo`` and ``mask`` are files."""
        prompt, common = self.prompt, self._common()
        per_prompt = (f"--per_prompt={self.count}",)
        match self.action:
            case "draw":
                control = self._control()
                if control:
                    control = (*control, f"--control_image={photo}")
                return [Command("sample", (*per_prompt, *common, *control), (prompt,))]
            case "restyle":
                options = (f"--strength={self.strength:g}", *per_prompt, *common, *self._control())
                return [Command("restyle", options, (photo, prompt))]
            case "backdrop":
                options = (f"--strength={self.strength:g}", *per_prompt, *common)
                return [Command("backdrop", (*self._subject(mask), *options), (photo, prompt))]
            case "stickers":
                return [Command("sticker", (f"--count={self.count}", *common), (prompt,))]
            case "side by side":
                both = (self, replace(self, checkpoint=self.other))
                options = [(*per_prompt, *one._common()) for one in both]
                return [Command("sample", own, (prompt,)) for own in options]
        raise UserError(f"There is no action {self.action!r}; use one of {', '.join(ACTIONS)}.")

    def _common(self) -> tuple[str, ...]:
        named = {
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "batch_size": self.count,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative": self.negative or None,
        }
        if self.adapter:
            named |= {"adapter": self.adapter, "adapter_scale": self.adapter_scale}
        if self.text_adapter:
            named |= {"text_adapter": self.text_adapter, "eta": self.eta}
        shown = {name: value for name, value in named.items() if value is not None}
        return tuple(
            f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}"
            for name, value in shown.items()
        )

    def _control(self) -> tuple[str, ...]:
        return (f"--control={self.control}@{float(self.control_strength)}",) if self.control else ()

    def _subject(self, mask: str) -> tuple[str, ...]:
        segmenter = (f"--segmenter={self.segmenter}",) if self.segmenter else ()
        match self.subject:
            case "what I paint":
                return (f"--mask={mask}",)
            case "in the box around the paint":
                box = ",".join(map(str, box_of(Path(mask))))
                return (f"--box={box}", *segmenter)
        return segmenter


def box_of(mask: Path) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is white in a mask."""
    with Image.open(mask) as image:
        white = np.asarray(image.convert("L")) > 127
    if not white.any():
        raise UserError("Nothing is painted: paint over the subject with the brush.")
    down, across = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def joined(commands: Sequence[Command]) -> str:
    """Commands as lines for a shell."""
    return "\n".join(command.line for command in commands)
