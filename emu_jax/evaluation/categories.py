"""Figures broken down by a column of the prompts, such as PartiPrompts' category.

Only figures that are a mean over images: a distance between sets depends on their sizes, which
differ between categories.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Int

from emu_jax.evaluation.comparison import label_of, word
from emu_jax.evaluation.metrics import Interval, Values, by_prompt, mean_interval, share_interval
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.report import Section, Table, Tables

ALL, NONE = "all prompts", "(none)"
_OPEN = 2  # tables that are shown at once
_NOTE = """n is the number of images. Intervals are 95 %, over prompts, and wide where n is small; a
single image has none. Among many categories some differ by chance."""

Columns = Mapping[str, Mapping[str, Sequence[float] | Values]]  # figure -> model -> one per image


@dataclass(frozen=True)
class Groups:
    """The categories of a column, by name or number, and the indices of their prompts. A prompt
    whose cell is a list belongs to several. ``repeats`` rows in a row are of one prompt."""

    column: str
    rows: Mapping[str, Int[np.ndarray, "n"]]
    repeats: int = 1

    @classmethod
    def of(cls, prompts: PromptSet, by: str = "") -> Self | None:
        """The groups of :meth:`PromptSet.categories`; None if the prompts have no such column."""
        column = prompts.categories(by)
        if not column:
            return None
        rows: dict[str, list[int]] = {}
        for i, names in enumerate(prompts.lists(column)):
            for name in dict.fromkeys(names or [NONE]):
                rows.setdefault(name, []).append(i)
        order = sorted(rows, key=lambda name: (int(name) if name.isdecimal() else -1, name))
        return cls(column, {name: np.array(rows[name]) for name in order}, prompts.repeats)


def by_figure(values: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, Values]]:
    """From model -> figure -> values to figure -> model -> values."""
    figures = next(iter(values.values()), {})
    return {key: {name: own[key] for name, own in values.items()} for key in figures}


def broken_down(
    columns: Columns, groups: Groups, labels: Mapping[str, str]
) -> tuple[Section, dict[str, Any]]:
    """A table for every figure, with a row for every category, and the same as a record for JSON.

    ``columns`` have the values of all prompts in order; those of type bool are shares.
    """
    rows = {**groups.rows, ALL: np.arange(len(next(iter(next(iter(columns.values())).values()))))}
    found = {
        figure: {
            model: {
                name: _interval(_values(values)[own], groups.repeats) for name, own in rows.items()
            }
            for model, values in by_model.items()
        }
        for figure, by_model in columns.items()
    }
    tables = {
        figure: Table(
            figure,
            [groups.column, "n", *(label_of(model, labels) for model in by_model)],
            [
                [name, len(own), *(_word(figure, by_model[model][name]) for model in by_model)]
                for name, own in rows.items()
            ],
        )
        for figure, by_model in found.items()
    }
    record = {
        "column": groups.column,
        "n": {name: len(own) for name, own in rows.items()},
        "figures": {
            figure: {
                model: {name: _as_dict(interval) for name, interval in one.items()}
                for model, one in by_model.items()
            }
            for figure, by_model in found.items()
        },
    }
    return Tables(f"Figures by {groups.column}", list(tables.values()), _OPEN, _NOTE), record


def _values(values: Sequence[float] | Values) -> Values:
    array = np.asarray(values)
    return array if array.dtype == bool else array.astype(np.float64)


def _interval(values: Values, repeats: int) -> Interval:
    means = by_prompt(values, repeats)
    if values.dtype == bool:
        return share_interval(means)
    return mean_interval(means) if len(means) > 1 else Interval(float(means[0]), *[math.nan] * 2)


def _word(figure: str, interval: Interval) -> str:
    return word(figure, interval).replace(" (nan to nan)", "")


def _as_dict(interval: Interval) -> dict[str, float | None]:
    return {k: None if math.isnan(value) else value for k, value in interval._asdict().items()}
