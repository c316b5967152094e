"""A trained judge, ready to embed images and texts, and the yardstick that is made with it.

This module joins the judge, data sets and prompts; :mod:`emu_jax.evaluation.assessment` computes
metrics from the embeddings.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from emu_jax.assembly.contrastive import make_contrastive
from emu_jax.assembly.models import locate
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import blaming, require_fit
from emu_jax.data.images import prepare
from emu_jax.data.mixture import Selection
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.evaluation.assessment import Yardstick
from emu_jax.evaluation.memorisation import copy_bound, descriptors
from emu_jax.evaluation.metrics import Probe
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.references import Sets
from emu_jax.nn.contrastive import ImageEmbedding
from emu_jax.parallel.placement import ONE_DEVICE

SHIPPED = "builtin:judge_64"
_MOST_REFERENCES = 400  # images in a set: distances are between sets of equal size


class Judge:
    """A trained contrastive model, from a run's folder, an exported one or builtin:NAME."""

    @blaming("path")
    def __init__(self, path: str = SHIPPED, batch_size: int = 50):
        model = load_model(locate(path), dtype=np.float32)
        config = ConfigDict(model.config)
        if config.get("task") != "contrastive":
            raise UserError(f"{path} is not a judge: its task is {config.get('task')!r}.")
        self.name, self.fingerprint = path, model.fingerprint
        self.side, self.background = config.data.image_size, tuple(config.data.background)
        self._task = make_contrastive(config, ONE_DEVICE)
        ((self._encoder, self._text),) = self._task.encoders.items()
        require_fit(model.params, jax.eval_shape(self._task.init, jax.random.key(0))[0], path)
        self._params = {name: jax.numpy.asarray(value) for name, value in model.params.items()}
        self._frozen = {
            name: {path: jax.numpy.asarray(value) for path, value in network.tensors()}
            for name, network in self._task.frozen.items()
        }
        self._batch_size = batch_size
        self._embed_images = jax.jit(self._task.embed_images)
        self._embed_texts = jax.jit(self._task.embed_texts)

    @property
    def scale(self) -> float:
        """The learned inverse temperature of its cosines."""
        one = jax.numpy.ones((1, 1))
        return float(self._task.model(self._params, one, one, method="logits")[0, 0])

    def embed_images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> ImageEmbedding:
        """Embeddings [n, d] and features [n, f]; images of another size are resized (Lanczos)."""
        embedded = [
            self._embed_images(self._params, batch)
            for batch in self._batches(self._resized(images))
        ]
        return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *embedded)

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        tokens = self._text.tokenize(texts)
        rows = [
            self._embed_texts(self._params, self._frozen, {"tokens": {self._encoder: batch}})
            for batch in self._batches(tokens)
        ]
        return np.concatenate(rows)[: len(texts)]

    def _batches(self, tree):
        """Batches of one size, the last one padded: one compiled program."""
        n = len(jax.tree.leaves(tree)[0])
        for start in range(0, n, self._batch_size):
            rows = np.minimum(np.arange(start, start + self._batch_size), n - 1)
            yield jax.tree.map(lambda x, rows=rows: x[rows], tree)

    def _resized(
        self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
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


def open_selection(text: str, data_dir: str) -> Selection:
    """The records that ``DATASET`` or ``DATASET:CONDITION`` names."""
    name, _, select = text.partition(":")
    return Selection(open_source(name, data_dir), select=select)


def yardstick(judge: Judge, sets: Sets, prompts: PromptSet) -> Yardstick:
    """The references of all metrics. Real images of the prompts have the judge's size."""
    images, _ = _read(judge, sets, sets.captions, None)
    needles, _ = _read(judge, sets, sets.needles, None)
    haystack, _ = _read(judge, sets, sets.haystack, _MOST_REFERENCES)
    order = np.random.default_rng(0).permutation(len(needles))[:_MOST_REFERENCES]
    features = np.asarray(judge.embed_images([needles[i] for i in order]).features)
    plain = np.asarray(judge.embed_images(haystack).features)
    texts = list(prompts.prompts)
    tuned, size = descriptors(np.stack(needles)), (judge.side, judge.side)
    return Yardstick(
        prompts=texts,
        texts=judge.embed_texts(texts),
        scale=judge.scale,
        probe=Probe.fit(features, plain),
        needles=features,
        haystack=plain,
        tuned=tuned,
        tuned_images=needles,
        bound=copy_bound(descriptors(np.stack(images)), tuned),
        real=list(prompts.real.read(size, judge.background)) if prompts.real else None,
        repeats=prompts.repeats,
    )


def _read(
    judge: Judge, sets: Sets, text: str, most: int | None
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[list[str]]]:
    """Images of a set in the judge's size, and their captions; at most ``most``, at random."""
    return read_set(text, sets.data_dir, (judge.side, judge.side), judge.background, most)


def read_set(
    text: str,
    data_dir: str,
    size: tuple[int, int],
    background: tuple[int, int, int] = (255, 255, 255),
    most: int | None = _MOST_REFERENCES,
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[list[str]]]:
    """Images of a set in one size, and their captions; at most ``most``, at random."""
    found = open_selection(text, data_dir)
    source, records = found.source, found.records()
    if most is not None and len(records) > most:
        records = np.sort(np.random.default_rng(0).permutation(records)[:most])
    captions = source.manifest.column("captions")
    images = [prepare(source.read(record), size, background=background)[0] for record in records]
    return images, list(captions[records])
