"""The judge at work: pictures and texts in, vectors out; and the yardstick made with it.

The one place where a trained judge, data sets and prompts meet; what is computed from the vectors
is in :mod:`emu_jax.evaluation.assessment`.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.cli import parts
from emu_jax.data.images import prepare
from emu_jax.data.mixture import Part
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.evaluation.assessment import Yardstick
from emu_jax.evaluation.memorisation import copy_bound, descriptors
from emu_jax.evaluation.metrics import Probe
from emu_jax.evaluation.prompts import kept_prompts
from emu_jax.evaluation.references import Sets
from emu_jax.nn.contrastive import Seen

SHIPPED = "builtin:judge_64"
_MOST_REFERENCES = 400  # pictures a side: distances are taken between sets of equal size


class Judge:
    """A trained contrastive model, from a run's folder, an exported one or builtin:NAME."""

    @blaming("path")
    def __init__(self, path: str = SHIPPED, batch_size: int = 50):
        model = load_model(parts.locate(path), dtype=np.float32)
        config = ConfigDict(model.config)
        if config.get("task") != "contrastive":
            raise UserError(f"{path} is no judge: its task is {config.get('task')}.")
        self.name, self.fingerprint = path, model.fingerprint
        self.side, self.background = config.data.image_size, tuple(config.data.background)
        self._task = parts.make_contrastive(config, parts.ONE_DEVICE)
        ((self._encoder, self._text),) = self._task.encoders.items()
        require_fit(model.params, jax.eval_shape(self._task.init, jax.random.key(0))[0], path)
        self._params = {name: jax.numpy.asarray(value) for name, value in model.params.items()}
        self._frozen = {
            name: {path: jax.numpy.asarray(value) for path, value in network.tensors()}
            for name, network in self._task.frozen.items()
        }
        self._batch_size = batch_size
        self._see = jax.jit(self._task.see)
        self._read = jax.jit(self._task.read)

    @property
    def scale(self) -> float:
        """The learned inverse temperature of its cosines."""
        one = jax.numpy.ones((1, 1))
        return float(self._task.model(self._params, one, one, method="logits")[0, 0])

    def see(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Seen:
        """Embeddings [n, d] and features [n, f]; pictures of another size are resized (Lanczos)."""
        seen = [self._see(self._params, batch) for batch in self._batches(self._resized(images))]
        return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *seen)

    def read(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        tokens = self._text.tokenize(texts)
        rows = [
            self._read(self._params, self._frozen, {"tokens": {self._encoder: batch}})
            for batch in self._batches(tokens)
        ]
        return np.concatenate(rows)[: len(texts)]

    def _batches(self, tree):
        """Equal batches, the last one filled up: one compiled program."""
        n = len(jax.tree.leaves(tree)[0])
        for start in range(0, n, self._batch_size):
            rows = np.minimum(np.arange(start, start + self._batch_size), n - 1)
            yield jax.tree.map(lambda x, rows=rows: x[rows], tree)

    def _resized(
        self, images: Iterable[UInt8[np.ndarray, "h w 3"]]
    ) -> UInt8[np.ndarray, "n s s 3"]:
        size = (self.side, self.side)
        return np.stack(
            [
                image
                if image.shape[:2] == size
                else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
                for image in images
            ]
        )


def part(text: str, data_dir: str) -> Part:
    """The pictures that ``DATASET`` or ``DATASET:CONDITION`` names."""
    name, _, select = text.partition(":")
    return Part(open_source(name, data_dir), select=select)


def yardstick(judge: Judge, sets: Sets, prompts: Sequence[str] | None, count: int) -> Yardstick:
    """Everything that models are measured by; ``prompts`` None: ``count`` of the set's captions."""
    shown, captions = _read(judge, sets, sets.captions, None)
    needles, _ = _read(judge, sets, sets.needles, None)
    haystack, _ = _read(judge, sets, sets.haystack, _MOST_REFERENCES)
    chosen = list(prompts) if prompts else kept_prompts(captions, count)
    order = np.random.default_rng(0).permutation(len(needles))[:_MOST_REFERENCES]
    features = np.asarray(judge.see([needles[i] for i in order]).features)
    plain = np.asarray(judge.see(haystack).features)
    tuned = descriptors(np.stack(needles))
    return Yardstick(
        prompts=chosen,
        texts=judge.read(chosen),
        scale=judge.scale,
        probe=Probe.fit(features, plain),
        needles=features,
        haystack=plain,
        tuned=tuned,
        tuned_images=needles,
        bound=copy_bound(descriptors(np.stack(shown)), tuned),
        real=None if prompts else [shown[_first(captions, prompt)] for prompt in chosen],
    )


def _first(captions: Sequence[Sequence[str]], prompt: str) -> int:
    return next(i for i, own in enumerate(captions) if prompt in own)


def _read(
    judge: Judge, sets: Sets, text: str, most: int | None
) -> tuple[list[UInt8[np.ndarray, "h w 3"]], list[list[str]]]:
    """A set's pictures as the judge looks at them, and their captions; at most so many, drawn."""
    found = part(text, sets.data_dir)
    source, records = found.source, found.records()
    if most is not None and len(records) > most:
        records = np.sort(np.random.default_rng(0).permutation(records)[:most])
    size, captions = (judge.side, judge.side), source.manifest.column("captions")
    images = [
        prepare(source.read(record), size, background=judge.background)[0] for record in records
    ]
    return images, list(captions[records])
