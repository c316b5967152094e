"""Choosing texts that differ from each other, by the cosine of their vectors.

In a given order, a text is chosen unless it is more similar than ``threshold`` to one that was
chosen before (UniFL, Zhang et al. 2024, arXiv 2404.05595, algorithm 2 b: a chosen text removes its
neighbors). With all of the chosen texts searched that is exact; :class:`Approximate` searches a
graph of them (HNSW, by the package faiss), for millions of texts.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int

from emu_jax.errors import UserError

MEND = "pip install 'emu_jax[prompts]'"
MOST_EXACT = 100_000  # texts that are searched exactly by default
_BLOCK = 1024
_QUERIES = 10_000
_LINKS, _DEPTH = 32, 128  # of the graph

Unit = Float32[np.ndarray, "n d"]  # vectors of length 1
Vectors = Callable[[Int[np.ndarray, "n"]], Unit]  # of texts by number


class Chosen(Protocol):
    """The vectors of the texts that are chosen."""

    def nearest(self, vectors: Unit) -> Float32[np.ndarray, "n"]:
        """The largest cosine of each with a vector here; below -1: there is none."""
        ...

    def add(self, vectors: Unit) -> None: ...


class Exact:
    """All cosines."""

    def __init__(self):
        self._blocks: list[Unit] = []

    def nearest(self, vectors: Unit) -> Float32[np.ndarray, "n"]:
        found = np.full(len(vectors), -2, np.float32)
        for block in self._blocks:
            np.maximum(found, (vectors @ block.T).max(1), out=found)
        return found

    def add(self, vectors: Unit) -> None:
        if len(vectors):
            self._blocks.append(vectors)


class Approximate:
    """A graph whose search may miss a neighbor. It is built by one thread, because the graph of
    several depends on their timing.
    """

    def __init__(self):
        if find_spec("faiss") is None:
            raise UserError(f"The approximate search needs the package faiss: {MEND}")
        self._index: Any = None

    def nearest(self, vectors: Unit) -> Float32[np.ndarray, "n"]:
        if self._index is None:
            return np.full(len(vectors), -2, np.float32)
        found, _ = self._index.search(vectors, 1)
        return found[:, 0]

    def add(self, vectors: Unit) -> None:
        import faiss  # pyright: ignore[reportMissingImports]

        if not len(vectors):
            return
        if self._index is None:
            self._index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = self._index.hnsw.efSearch = _DEPTH
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            self._index.add(vectors)
        finally:
            faiss.omp_set_num_threads(threads)


def distinct(
    order: Int[np.ndarray, "n"], vectors: Vectors, threshold: float, chosen: Chosen
) -> Int[np.ndarray, "m"]:
    """The numbers of the chosen texts, in their order."""
    found: list[int] = []
    for numbers in _blocks(order):
        unit = vectors(numbers)
        fresh = chosen.nearest(unit) <= threshold
        numbers, unit = numbers[fresh], unit[fresh]
        kept = _first(unit @ unit.T > threshold)
        chosen.add(unit[kept])
        found += numbers[kept].tolist()
    return np.array(found, int)


def _first(near: Bool[np.ndarray, "n n"]) -> list[int]:
    """The chosen ones of a block."""
    kept: list[int] = []
    removed = np.zeros(len(near), bool)
    for i in range(len(near)):
        if not removed[i]:
            kept.append(i)
            removed |= near[i]
    return kept


def nearest_similarity(numbers: Int[np.ndarray, "n"], vectors: Vectors, seed: int) -> float:
    """The mean, over texts, of the largest cosine with another text; over at most 10,000 of them at
    random, each with all others. A text that is there twice has a cosine of 1.
    """
    if len(numbers) < 2:
        return float("nan")
    random = np.random.default_rng(seed)
    asked = random.permutation(len(numbers))[:_QUERIES]
    place = np.full(len(numbers), -1)
    place[asked] = np.arange(len(asked))
    queries = vectors(numbers[asked])
    found = np.full(len(asked), -2, np.float32)
    for block in _blocks(np.arange(len(numbers))):
        cosines = queries @ vectors(numbers[block]).T
        itself = place[block] >= 0
        cosines[place[block][itself], np.flatnonzero(itself)] = -2
        np.maximum(found, cosines.max(1), out=found)
    return float(np.minimum(found, 1).mean())


def _blocks(numbers: Int[np.ndarray, "n"]) -> Iterator[Int[np.ndarray, "b"]]:
    for start in range(0, len(numbers), _BLOCK):
        yield numbers[start : start + _BLOCK]
