"""Training curves: a run's ``metrics.jsonl`` read back, and plots as small hand-made SVG.

The plots name no colors but CSS classes and variables (``--line-0`` ...), so that the report around
them decides how they look in light and dark mode.
"""

import html
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError
from emu_jax.training.trackers import METRICS_FILE

COLORS = 8  # --line-0 .. --line-7; the next 8 lines have the same colors and another dash
_DASHES = ("", "7 4", "2 4")
_MOST_POINTS = 200

_Axis = Callable[[float], float]
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 14, 34
_ROW = 26
_BAR = 17  # height of a bar's row
_MOST_BINS = 40
_LETTER = 6.2  # average width of a letter
_LONGEST_LABEL = 34  # letters: about half of the width

Limits = tuple[float, float]
SHARE: Limits = (0.0, 1.0)  # limits of an axis, whose ticks are then percentages


@dataclass(frozen=True)
class Curve:
    """One metric of one run by step."""

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


_EMPTY = Curve(np.zeros(0), np.zeros(0))


def read_metrics(run: epath.PathLike) -> dict[str, Curve]:
    """Every metric of a run's folder (or of one ``.jsonl`` file), in the order of first appearance.

    An incomplete last line, which is still being written, is ignored.
    """
    path = epath.Path(run)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{run} has no {METRICS_FILE}; give the folder of a training run.")
    points: dict[str, list[tuple[float, float]]] = {}
    lines = [line for line in enumerate(read_lines(path), start=1) if line[1]]
    for number, line in lines:
        try:
            record = json.loads(line)
            step = float(record["step"])
            values = {k: float(v) for k, v in record.items() if k not in ("step", "time")}
        except (ValueError, KeyError, TypeError) as error:
            if number == lines[-1][0]:
                break
            raise UserError(f"{path}, line {number} is not a line of metrics: {line!r}") from error
        for name, value in values.items():
            points.setdefault(name, []).append((step, value))
    return {name: Curve(*np.array(pairs, float).T) for name, pairs in points.items()}


def charts(
    runs: Mapping[str, Mapping[str, Curve]],
    names: Sequence[str] | None = None,
    marks: Mapping[str, float] | None = None,
    objectives: Mapping[str, str] | None = None,
    shares: Sequence[str] = (),
) -> dict[str, str]:
    """One SVG per metric with a line per run; a run has the same color in all of them.

    ``names`` defaults to all metrics; one without a finite value is left out. ``marks`` are steps
    to point out, by run. A loss has one SVG for each of the runs' ``objectives``, because losses
    of different objectives have no common axis. ``shares`` are metrics between 0 and 1.
    """
    if names is None:
        names = list(dict.fromkeys(name for metrics in runs.values() for name in metrics))
    plots: dict[str, str] = {}
    for name in names:
        measured = [run for run, metrics in runs.items() if name in metrics]
        kinds = {run: (objectives or {}).get(run, "") for run in measured if "loss" in name}
        several = len(set(kinds.values())) > 1
        for kind in dict.fromkeys(kinds.get(run, "") for run in measured):
            lines = {
                run: metrics.get(name, _EMPTY) if kinds.get(run, "") == kind else _EMPTY
                for run, metrics in runs.items()
            }
            if any(np.isfinite(curve.values).any() for curve in lines.values()):
                title = f"{name}: {kind}" if several and kind else name
                limits = SHARE if name in shares else None
                plots[title] = line_plot(lines, title=title, marks=marks, limits=limits)
    return plots


def line_plot(
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    marks: Mapping[str, float] | None = None,
    limits: Limits | None = None,
) -> str:
    """The curves in one SVG with axes and ticks; the i-th has the i-th color even if it is empty.

    A mark within the axis is a vertical broken line in the color of its curve. Long curves are
    thinned to means over consecutive points; the axis covers the middle 98 % of the values (and
    both ends of each curve), so that one outlier does not flatten the rest, and stays within
    ``limits``.
    """
    shown = [_thin(curve) for curve in curves.values()]
    drawn = [curve for curve in shown if len(curve.steps)]
    if not drawn:
        raise UserError(f"There is nothing to plot in {title or 'this chart'}.")
    xs = np.concatenate([curve.steps for curve in drawn])
    ys = np.concatenate([curve.values for curve in drawn])
    ends = [y for curve in drawn for y in (curve.values[0], curve.values[-1])]
    low, high = np.quantile(ys, (0.01, 0.99))
    y_ticks = ticks(min(low, *ends), max(high, *ends), limits=limits)
    left, right = xs.min(), max(xs.max(), xs.min() + 1)
    x_at = _scale(left, right, _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)

    parts = [_opening(title, _HEIGHT), *_rules(y_ticks, y_at, limits)]
    for tick in ticks(left, right):
        if left <= tick <= right:
            x, y = x_at(tick), _HEIGHT - _BOTTOM
            parts.append(f'<path class="rule" d="M{x:.1f} {y}v4"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y + 17}" text-anchor="middle">{_short(tick)}</text>'
            )
    parts.append(_below(x_label))
    if y_label:
        parts.append(f'<text x="{_LEFT}" y="10">{html.escape(y_label)}</text>')
    for i, (name, curve) in enumerate(zip(curves, shown, strict=True)):
        if len(curve.steps):
            parts.append(_line(curve, x_at, y_at, i))
        mark = (marks or {}).get(name)
        if len(curve.steps) and mark is not None and left <= mark <= right:
            path = f"M{x_at(mark):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"
            style = f'stroke="var(--line-{i % COLORS})" stroke-dasharray="4 3"'
            parts.append(f'<path class="mark" d="{path}" {style}/>')
    return "".join([*parts, "</svg>"])


def interval_plot(
    rows: Mapping[str, tuple[float, float, float]], title: str = "", limits: Limits | None = None
) -> str:
    """One row each: its name, a dot at its value, a whisker from its low to its high end.

    ``rows`` are (value, low, high), as an ``Interval`` is; the i-th has the i-th color. A row that
    is not finite stays empty. The axis stays within ``limits``.
    """
    ends = [number for row in rows.values() if np.isfinite(row).all() for number in row]
    if not ends:
        raise UserError(f"There is nothing to plot in {title or 'this chart'}.")
    labels = [_shortened(name) for name in rows]
    left = max(_LEFT, max(map(len, labels)) * _LETTER + 12)
    foot = _TOP + len(rows) * _ROW
    x_ticks = ticks(min(ends), max(ends), about=4, limits=limits)
    x_at = _scale(x_ticks[0], x_ticks[-1], left, _WIDTH - 2 * _RIGHT)

    parts = [_opening(title, foot + _BOTTOM - _TOP)]
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(f'<path class="rule" d="M{x:.1f} {_TOP}V{foot}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{_label(tick, limits)}</text>'
        )
    for i, (label, row) in enumerate(zip(labels, rows.values(), strict=True)):
        y = _TOP + (i + 0.5) * _ROW
        parts.append(
            f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}'
            "</text>"
        )
        if np.isfinite(row).all():
            color = f"var(--line-{i % COLORS})"
            value, low, high = map(x_at, row)
            whisker = f"M{low:.1f} {y - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8"
            parts.append(f'<path d="{whisker}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            parts.append(f'<circle cx="{value:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
    return "".join([*parts, "</svg>"])


def histogram(
    values: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
    *,
    title: str = "",
    x_label: str = "",
    color: int = 0,
) -> str:
    """Counts of numbers of 0 or more, in at most 40 bins of one round width from 0 on."""
    if not len(values):
        raise UserError(f"There is nothing to plot in {title or 'this chart'}.")
    steps = (m * 10**power for power in range(16) for m in (1, 2, 5))
    width = next(step for step in steps if max(values) < _MOST_BINS * step)
    counts = np.bincount(np.asarray(values) // width)
    y_ticks = ticks(0, max(counts))
    x_at = _scale(0, len(counts) * width, _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    foot = _HEIGHT - _BOTTOM
    parts = [_opening(title, _HEIGHT), *_rules(y_ticks, y_at)]
    for i, count in enumerate(counts):
        x, y = x_at(i * width), y_at(count)
        size = f'width="{x_at((i + 1) * width) - x - 1:.1f}" height="{foot - y:.1f}"'
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} {_fill(color)}/>')
    for tick in ticks(0, len(counts) * width):
        if tick <= len(counts) * width:
            x = x_at(tick)
            parts.append(f'<text x="{x:.1f}" y="{foot + 17}" text-anchor="middle">{tick:g}</text>')
    return "".join([*parts, _below(x_label), "</svg>"])


def two_histograms(
    whole: Float[np.ndarray, " n"],
    part: Float[np.ndarray, " m"],
    *,
    title: str = "",
    x_label: str = "",
) -> str:
    """Shares of numbers by value: of all of them, and over them of a part. Bins cover the middle
    98 % of all numbers, and the first and the last have what lies beyond.
    """
    if not len(whole):
        raise UserError(f"There is nothing to plot in {title or 'this chart'}.")
    low, high = sorted(
        (np.quantile(whole, 0.01, method="higher"), np.quantile(whole, 0.99, method="lower"))
    )
    x_ticks = ticks(float(low), float(high), limits=(float(low), float(high)))
    edges = np.linspace(low, high if high > low else low + 1, _MOST_BINS + 1)
    shares = [
        np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
        for values in (whole, part)
    ]
    y_ticks = ticks(0, float(max(map(np.max, shares))))
    x_at = _scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    foot = _HEIGHT - _BOTTOM
    parts = [_opening(title, _HEIGHT), *_rules(y_ticks, y_at, SHARE)]
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        y, size = y_at(shares[0][i]), f'width="{x_at(right) - x_at(left) - 1:.1f}"'
        parts.append(
            f'<rect x="{x_at(left):.1f}" y="{y:.1f}" {size} height="{foot - y:.1f}" {_fill(0)} '
            'opacity="0.45"/>'
        )
    outline = "".join(
        f"H{x_at(left):.1f}V{y_at(share):.1f}H{x_at(right):.1f}"
        for (left, right), share in zip(itertools.pairwise(edges), shares[1], strict=True)
    )
    parts.append(f'<path d="M{_LEFT} {foot}{outline}V{foot}" {_stroke(1)}/>')
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(f'<text x="{x:.1f}" y="{foot + 17}" text-anchor="middle">{tick:g}</text>')
    return "".join([*parts, _below(x_label), "</svg>"])


def bar_plot(rows: Mapping[str, int], *, title: str = "", color: int = 0) -> str:
    """One row each: its name, a bar, its number."""
    if not rows:
        raise UserError(f"There is nothing to plot in {title or 'this chart'}.")
    labels = [_shortened(name, keep="start") for name in rows]
    left = max(_LEFT, max(map(len, labels)) * _LETTER + 12)
    numbers = [f"{value:,}" for value in rows.values()]
    right = _WIDTH - max(map(len, numbers)) * _LETTER - 12
    x_at = _scale(0, max(*rows.values(), 1), left, right)
    parts = [_opening(title, _TOP + len(rows) * _BAR)]
    for i, (label, number, value) in enumerate(zip(labels, numbers, rows.values(), strict=True)):
        y = _TOP + i * _BAR
        parts.append(
            f'<text x="{left - 8:.1f}" y="{y + 12}" text-anchor="end">{html.escape(label)}</text>'
        )
        size = f'width="{x_at(value) - left:.1f}" height="{_BAR - 5}"'
        parts.append(f'<rect x="{left:.1f}" y="{y + 1}" {size} {_fill(color)}/>')
        parts.append(f'<text x="{x_at(value) + 6:.1f}" y="{y + 12}">{number}</text>')
    return "".join([*parts, "</svg>"])


def key(i: int) -> str:
    """A small SVG of the i-th line, for a legend."""
    return f'<svg class="key" viewBox="0 0 28 6"><path d="M0 3H28" {_stroke(i)}/></svg>'


def ticks(low: float, high: float, about: int = 5, limits: Limits | None = None) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at most ``low`` to at least ``high``.

    Those outside ``limits`` are left out.
    """
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    numbers = [round(i * step, 12) for i in range(first, last + 1)]
    return [n for n in numbers if limits is None or limits[0] <= n <= limits[1]]


def _opening(title: str, height: float) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}">'
    )


def _rules(y_ticks: Sequence[float], y_at: _Axis, limits: Limits | None = None) -> list[str]:
    """Horizontal lines at the ticks, and their numbers."""
    parts = []
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(tick, limits)}</text>'
        )
    return parts


def _below(x_label: str) -> str:
    """The name of the horizontal axis."""
    at = f'x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end"'
    return f"<text {at}>{html.escape(x_label)}</text>"


def _shortened(label: str, keep: str = "end") -> str:
    if len(label) <= _LONGEST_LABEL:
        return label
    if keep == "start":
        return label[: _LONGEST_LABEL - 3] + "..."
    # The ends of paths differ more than their beginnings.
    return "..." + label[3 - _LONGEST_LABEL :]


def _thin(curve: Curve) -> Curve:
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    run = math.ceil(len(steps) / _MOST_POINTS) or 1
    starts = np.arange(0, len(steps), run)
    counts = np.diff(np.append(starts, len(steps)))
    return Curve(np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts)


def _scale(low: float, high: float, start: float, end: float) -> _Axis:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _line(curve: Curve, x_at: _Axis, y_at: _Axis, i: int) -> str:
    xs = [x_at(step) for step in curve.steps]
    ys = [min(max(y_at(value), _TOP), _HEIGHT - _BOTTOM) for value in curve.values]
    if len(xs) == 1:
        return f'<circle cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="3" {_stroke(i)}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" {_stroke(i)}/>'


def _stroke(i: int) -> str:
    """The look of the i-th line."""
    dash = _DASHES[i // COLORS % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="var(--line-{i % COLORS})" stroke-width="1.6"{dashes}'


def _fill(i: int) -> str:
    return f'fill="var(--line-{i % COLORS})"'


def _label(tick: float, limits: Limits | None) -> str:
    return f"{tick * 100:g}%" if limits == SHARE else f"{tick:g}"


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
