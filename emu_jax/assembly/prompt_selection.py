"""Active prompts: few of many that say something and differ (UniFL, Zhang et al. 2024, arXiv
2404.05595, algorithm 2).

    1. Prompts whose information (:mod:`emu_jax.text.scene_graph`) is below ``least`` are dropped.
    2. In a random order, a prompt is kept unless it is more similar than ``similarity`` to one that
       was kept before (:mod:`emu_jax.data.distinct`).
    3. ``count`` of them are drawn.

Information and vectors are cached by the texts, so an interrupted selection continues, and another
threshold costs neither. The paper gives neither the encoder nor the number of neighbors: MiniLM,
and all that were kept.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Int

from emu_jax.assembly.vectors import compute_vectors
from emu_jax.data.cache import digest
from emu_jax.data.distinct import (
    MOST_EXACT,
    Approximate,
    Exact,
    Unit,
    distinct,
    nearest_similarity,
)
from emu_jax.data.precompute import cache_text
from emu_jax.data.vectors import ARRAY, GROUP
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.text.scene_graph import SceneGraphs
from emu_jax.text.vectors import VectorModel

Search = Literal["auto", "exact", "approximate"]
_PARSED = 1024  # prompts at a time
_INFORMATION = "information"


@dataclass(frozen=True)
class Criteria:
    """``count`` 0: all that are left."""

    least: int = 1
    similarity: float = 0.8
    count: int = 0
    search: Search = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Selected:
    """The chosen prompts with their information, how many were left after each step, and the mean
    cosine with the nearest neighbor: of as many prompts at random, and of the chosen ones.
    """

    prompts: tuple[str, ...]
    information: tuple[int, ...]
    given: int
    informative: int
    different: int
    search: str
    similarity_random: float
    similarity_selected: float

    def lines(self) -> list[str]:
        return [
            f"{self.given:,} prompts; {self.informative:,} say enough; {self.different:,} of these "
            f"differ ({self.search} search); {len(self.prompts):,} are selected",
            f"mean similarity to the nearest neighbor: {self.similarity_random:.3f} at random, "
            f"{self.similarity_selected:.3f} selected",
        ]


def select_prompts(
    prompts: Sequence[str],
    criteria: Criteria,
    parser: SceneGraphs,
    model: VectorModel,
    cache_dir: str | epath.PathLike,
    batch_size: int = 256,
) -> Selected:
    """Some of ``prompts``, by ``criteria``: a function of these and of the seed.

    Raises:
      UserError: no prompt says enough.
    """
    pool = [text for text in (" ".join(prompt.split()) for prompt in prompts) if text]
    texts = ["", *sorted(set(pool))]  # the form of a cache of captions
    known = _information(texts, parser, cache_dir)
    informative = 1 + np.flatnonzero(known[1:] >= criteria.least)
    if not len(informative):
        raise UserError(
            f"None of {len(texts) - 1:,} prompts has an information of {criteria.least} or more: "
            "set --least lower."
        )
    found = compute_vectors(model, texts, cache_dir, make_mesh(data=1, fsdp=-1), batch_size)
    assert found is not None  # of the first process

    def vectors(numbers: Int[np.ndarray, "n"]) -> Unit:
        own = found.cache.take(numbers, GROUP)[ARRAY][:, 0].astype(np.float32)
        return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)

    random = np.random.default_rng(criteria.seed)
    exact = criteria.search == "exact" or (
        criteria.search == "auto" and len(informative) <= MOST_EXACT
    )
    order = random.permutation(informative)
    left = distinct(order, vectors, criteria.similarity, Exact() if exact else Approximate())
    chosen = random.permutation(left)[: criteria.count or None]
    number = {text: i for i, text in enumerate(texts)}
    anything = random.choice(len(pool), len(chosen), replace=False)
    before = np.array([number[pool[i]] for i in anything])
    return Selected(
        prompts=tuple(texts[i] for i in chosen),
        information=tuple(known[chosen].tolist()),
        given=len(pool),
        informative=len(informative),
        different=len(left),
        search="exact" if exact else "approximate",
        similarity_random=nearest_similarity(before, vectors, criteria.seed),
        similarity_selected=nearest_similarity(chosen, vectors, criteria.seed),
    )


def write_prompts(selected: Selected, criteria: Criteria, out: epath.PathLike) -> epath.Path:
    """A table of the prompts and their information, and beside it a JSON file of how they were
    selected. Returns the latter.
    """
    table = epath.Path(out).expanduser()
    rows = zip(selected.prompts, map(str, selected.information), strict=True)
    lines = ["\t".join(row) for row in [("prompt", _INFORMATION), *rows]]
    about: dict[str, Any] = {**asdict(criteria), **asdict(selected)}
    about["selected"] = len(about.pop("prompts"))
    del about[_INFORMATION]
    record = table.with_suffix(".json")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_bytes(("\n".join(lines) + "\n").encode())
    record.write_text(json.dumps(about, indent=1) + "\n")
    return record


def _information(
    texts: Sequence[str], parser: SceneGraphs, cache_dir: str | epath.PathLike
) -> Int[np.ndarray, "n"]:
    """That of every text; an interrupted parse continues."""
    made_from = parser.settings
    folder = epath.Path(cache_dir).expanduser() / f"{_INFORMATION}_{digest(made_from)[:16]}"

    def parse(batch: list[str]) -> dict[str, np.ndarray]:
        return {_INFORMATION: np.array(parser(batch), np.int32)}

    cache = cache_text(folder, texts, parse, made_from, _PARSED)
    return cache.take(np.arange(len(texts)), GROUP)[_INFORMATION]
