"""Networks that embed images and texts in one space: the shipped judge, or a CLIP by its path."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from emu_jax.curation.filters import Pixels


class Tower(Protocol):
    """Embeddings of length one."""

    scale: float  # the inverse temperature of their cosines

    def images(self, images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]: ...
    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]: ...


@cache
def open_tower(model: str) -> Tower:
    """A judge (``builtin:judge_64``, a run, an exported model), or the folder of a CLIP of
    transformers.
    """
    folder = Path(model).expanduser()
    if (folder / "preprocessor_config.json").exists() or _is_clip(folder / "config.json"):
        from emu_jax.evaluation.clip_metrics import open_clip

        return _Clip(open_clip(folder))
    return _Judge(model)


def _is_clip(file: Path) -> bool:
    return file.is_file() and '"clip' in file.read_text(errors="replace")


class _Judge:
    def __init__(self, model: str) -> None:
        from emu_jax.assembly.judge import Judge

        self._judge = Judge(model, batch_size=32)
        self.scale = self._judge.scale

    def images(self, images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        return _unit(self._judge.embed_images(images).embedding)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        return _unit(self._judge.embed_texts(texts))


class _Clip:
    def __init__(self, towers) -> None:
        self._towers, self.scale = towers, towers.scale

    def images(self, images: Sequence[Pixels]) -> Float[np.ndarray, "n d"]:
        return np.asarray(self._towers.images(tuple(images)))  # a tuple is not remembered

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        return np.asarray(self._towers.texts(texts))


def _unit(x) -> Float[np.ndarray, "n d"]:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
