"""The stages of curation: score, choose, report, build. Each continues where it was stopped."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from emu_jax.curation.choices import KEPT, Duplicates, Funnel, Row, Step, choose
from emu_jax.curation.duplicates import find_pairs
from emu_jax.curation.registry import SOURCES, STEPS
from emu_jax.curation.scores import DAMAGED, Scores, digest
from emu_jax.curation.scoring import made, open_scores, score
from emu_jax.curation.sections import Curation
from emu_jax.curation.sources import Source
from emu_jax.data.manifest import open_parquet
from emu_jax.errors import UserError

STAGES = ("score", "choose", "report", "build")
_NAMED = 5  # damaged images that are named on the terminal


class Pool(NamedTuple):
    """A config's source and its score tables."""

    config: Curation
    source: Source
    scores: Scores
    out: epath.Path


class Chosen(NamedTuple):
    """What the steps have chosen, and the pairs of near-duplicates of those that look for them."""

    steps: Mapping[str, Step]
    funnel: Funnel
    pairs: Mapping[str, epath.Path]


def open_pool(config: Curation, out: epath.PathLike) -> Pool:
    """The pool of a config, scored or not.

    Raises:
      UserError: there is no such source, or a package of a filter is missing.
    """
    source: Source = made(SOURCES, config.source)
    place = epath.Path(out).expanduser()
    return Pool(config, source, open_scores(config, place, source), place)


def score_pool(pool: Pool, options: PipelineOptions) -> dict[str, float]:
    """Computes the score tables that are missing; the seconds of every filter over all workers."""
    return score(pool.config, pool.source, pool.scores, options)


def damaged(pool: Pool) -> tuple[int, list[str]]:
    """(how many images cannot be read, the first of them with their reasons)."""
    count, named = 0, []
    for shard in range(pool.scores.count):
        bad = np.flatnonzero(~pool.scores.readable(shard))
        count += len(bad)
        if len(bad) and len(named) < _NAMED:
            found = pool.scores.read(shard, ["key", DAMAGED])
            named += [f"{found['key'][i]}: {found[DAMAGED][i]}" for i in bad[: _NAMED - len(named)]]
    return count, named


def choose_images(pool: Pool, options: PipelineOptions) -> Chosen:
    """Takes the steps of the config, or reads what they chose before."""
    for shard in range(pool.scores.count):
        if pool.scores.missing(shard):
            raise UserError(
                f"The shard {pool.source.shards[shard]} has no scores of this config yet: run "
                "--stage=score first."
            )
    config = pool.config
    for key in ("numbers", "texts"):
        for name in getattr(pool.source, key):
            if pool.scores.is_empty(name):
                raise UserError(
                    f"config.source.{key} names {name!r}, and no image of the pool has a value of "
                    "it: change the name, or leave it out."
                )
    steps: dict[str, Step] = {name: made(STEPS, one) for name, one in config.steps.items()}
    pairs = {
        f"config.steps.{name}": find_pairs(
            pool.out, pool.scores, step, f"config.steps.{name}", options
        )
        for name, step in steps.items()
        if isinstance(step, Duplicates)
    }
    folder = choices_folder(pool)
    funnel = _read(folder)
    if funnel is None:
        funnel = choose(pool.scores, steps, pairs, config.report.by, config.labels)
        funnel.write(folder)
    return Chosen(steps, funnel, pairs)


def choices_folder(pool: Pool) -> epath.Path:
    """Where the choices of a config are: they depend on its scores and steps."""
    steps = [(name, dataclasses.asdict(one)) for name, one in pool.config.steps.items()]
    about = [steps, pool.config.report.by, pool.config.labels, pool.scores.versions]
    return pool.out / "choices" / digest(about)


def _read(folder: epath.Path) -> Funnel | None:
    """Choices that are complete."""
    table = folder / "funnel.json"
    if not table.exists():
        return None
    rows = [Row(**row) for row in json.loads(table.read_text())]
    content = (folder / "left_by.parquet").read_bytes()
    left_by = open_parquet(content).read(use_threads=False)["left_by"].to_numpy()
    return Funnel(rows, left_by)


def funnel_lines(funnel: Funnel) -> list[str]:
    """The funnel as lines of text."""
    width = max(len(row.step) for row in funnel.rows)
    return [f"  {row.step:<{width}}  {row.left:>13,}{_about(row)}" for row in funnel.rows]


def _about(row: Row) -> str:
    parts = []
    low, high = row.bounds or (None, None)
    parts += [f"at least {low:.4g}"] if low is not None else []
    parts += [f"at most {high:.4g}"] if high is not None else []
    parts += [f"precision {row.precision:.0%}"] if row.precision is not None else []
    parts += [f"recall {row.recall:.0%}"] if row.recall is not None else []
    return "  " + ", ".join(parts) if parts else ""


def kept_rows(pool: Pool, funnel: Funnel) -> list[Sequence[int]]:
    """Of every shard the rows that are kept, ascending."""
    starts = pool.scores.starts.tolist()
    return [
        np.flatnonzero(funnel.left_by[start:stop] == KEPT).tolist()
        for start, stop in itertools.pairwise(starts)
    ]
