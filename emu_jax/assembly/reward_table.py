"""The accuracies of trained rewards on pairs of every dimension, as a table."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from emu_jax.assembly.config import source
from emu_jax.assembly.rewards import trained_reward
from emu_jax.assembly.streams import open_selections, stream_spec
from emu_jax.data.pipeline import Loader
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import share_interval
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Frozen, Rows
from emu_jax.tasks.preferences import DIMENSION, Preferences

_BATCH = 50


def accuracy_table(paths: Sequence[str], select: str = "", data_dir: str = "") -> str:
    """A Markdown table: a row for every output of the rewards, a column for every dimension of
    pairs; percent with the 95 % interval.

    The pairs are those of a reward's validation sources, by another condition if ``select`` is
    given. Ties are left out.
    """
    lines: list[str] = []
    for path in paths:
        task, weights, config = trained_reward(path)
        config.data.data_dir = data_dir or config.data.get("data_dir") or DEFAULT_DATA_DIR
        right, dimension = _judged(task, _arrays(weights), config, select)
        chosen = {"all pairs": np.ones(len(right), bool)}
        chosen |= {name: dimension == i for i, name in enumerate(task.dimensions)}
        lines = lines or [_row("reward", *chosen), _row(*["---"] * (1 + len(chosen)))]
        for i, output in enumerate(task.outputs):
            name = f"{path}, {output}" if task.separate else path
            lines.append(_row(name, *(_share(right[rows, i]) for rows in chosen.values())))
    return "\n".join(lines)


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
