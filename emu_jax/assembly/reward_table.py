"""The accuracies of trained rewards on pairs of every dimension."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from emu_jax.assembly.config import source
from emu_jax.assembly.rewards import trained_reward
from emu_jax.assembly.streams import open_selections, stream_spec
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.data.pipeline import Loader
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import share_interval
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Frozen, Rows
from emu_jax.tasks.preferences import DIMENSION, Preferences

_BATCH = 50


@dataclass(frozen=True)
class Judged:
    """Whether an output of a reward is right on each of the pairs, and what these differ in."""

    name: str
    right: Bool[np.ndarray, " n"]
    dimension: Sequence[str]  # empty: as a whole


def judge_pairs(paths: Sequence[str], select: str = "", data_dir: str = "") -> list[Judged]:
    """All outputs of the rewards. The pairs are those of a reward's validation sources, by another
    condition if ``select`` is given. Ties are left out.
    """
    found: list[Judged] = []
    for path in paths:
        task, weights, config = trained_reward(path)
        config.data.data_dir = data_dir or config.data.get("data_dir") or DEFAULT_DATA_DIR
        right, number = _judged(task, _arrays(weights), config, select)
        dimension = [task.dimensions[i] if i >= 0 else "" for i in number]
        for i, output in enumerate(task.outputs):
            name = f"{path}, {output}" if task.separate else path
            found.append(Judged(name, right[:, i], dimension))
    return found


def table(found: Sequence[Judged]) -> str:
    """In Markdown: a row for every output, a column for every dimension of pairs; percent with the
    95 % interval.
    """
    dimensions = list(dict.fromkeys(name for one in found for name in sorted(set(one.dimension))))
    known = [name for name in DIMENSIONS if name in dimensions]
    known += [name for name in dimensions if name and name not in known]
    lines = [_row("reward", "all pairs", *known), _row(*["---"] * (2 + len(known)))]
    for one in found:
        rows = np.array(one.dimension)
        cells = (_share(one.right[rows == name]) for name in known)
        lines.append(_row(one.name, _share(one.right), *cells))
    return "\n".join(lines)


def record(found: Sequence[Judged]) -> Mapping[str, Any]:
    """For ``emu-jax claims``: outputs in place of models, pairs in place of images, of the kind of
    their dimension.
    """

    def rows(one: Judged) -> Iterator[Mapping[str, Any]]:
        for i, (right, dimension) in enumerate(zip(one.right, one.dimension, strict=True)):
            yield {"image": i, "kind": dimension, "right": bool(right)}

    most = max(len(one.right) for one in found)
    return {
        "prompts": [f"pair {i}" for i in range(most)],
        "models": {one.name: {} for one in found},
        "contents": {"images": {one.name: list(rows(one)) for one in found}},
    }


def _judged(
    task: Preferences, params: Params, config: ConfigDict, select: str
) -> tuple[Bool[np.ndarray, "n outputs"], Int[np.ndarray, " n"]]:
    """Whether each output scores the preferred image higher, and the number of each pair's
    dimension (-1: none is given).
    """
    ((stream, rows_hold),) = task.streams.items()
    sources = {
        f"{name}_{key}": source(
            entry.dataset, select=select or entry.select, captions=entry.captions
        )
        for name, entries in config.data.validation.items()
        for key, entry in entries.items()
    }
    if not sources:
        raise UserError("The reward was trained without validation pairs; none can be judged.")
    changes = dict(sequential=True, flip=False, crop="centre", batch_size=_BATCH)
    spec = stream_spec(
        config, stream, **changes, further=rows_hold.further, columns=rows_hold.columns
    )
    tokenize = {name: encoder.tokenize for name, encoder in task.encoders.items()}
    loader = Loader(spec, open_selections(config, ConfigDict(sources)), tokenize)
    frozen = {name: _arrays(network) for name, network in task.frozen.items()}

    @jax.jit
    def scored(params: Params, frozen: dict[str, Params], rows: Rows):
        return task.all_scores(params, frozen, rows, task.images(rows)), task.preferred(rows)

    right, dimension = [], []
    for n in range(loader.steps):
        rows = loader(n)
        scores, preferred = map(np.asarray, scored(params, frozen, rows))
        counted = rows["valid"] & (preferred != 0.5)
        ahead = (scores[:, 0] - scores[:, 1]) * (preferred[:, None] - 0.5) > 0
        right.append(ahead[counted])
        given = rows["columns"][DIMENSION][:, 0] if task.dimensions else np.full(len(counted), -1)
        dimension.append(given[counted])
    return np.concatenate(right), np.concatenate(dimension)


def _arrays(network: Frozen) -> Params:
    return {path: jnp.asarray(x) for path, x in network.tensors()}


def _share(right: Bool[np.ndarray, " n"]) -> str:
    return f"{share_interval(right):.1%}, n = {len(right)}" if len(right) else "no pairs"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
