"""Training curves: a run's ``metrics.jsonl`` read back, and plots as small hand-made SVG.

The plots carry no colours of their own but classes and CSS variables (``--line-0`` ...), so that
the report around them decides how they look by day and by night.
"""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Float

from emu_jax.errors import UserError
from emu_jax.training.trackers import METRICS_FILE

SERIES_COLOURS = 6  # --line-0 .. --line-5 come round again after that
_MOST_POINTS = 200

_Axis = Callable[[float], float]
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 14, 34
_ROW = 26
_LETTER = 6.2  # width of a letter on average
_LONGEST_LABEL = 34  # letters: about half of the width


@dataclass(frozen=True)
class Curve:
    """One metric of one run, in steps."""

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


_NOTHING = Curve(np.zeros(0), np.zeros(0))


def read_metrics(run: epath.PathLike) -> dict[str, Curve]:
    """Every metric of a run's folder (or of one ``.jsonl`` file), in the order of first appearance.

    A last line that is still being written is passed over.
    """
    path = epath.Path(run)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{run} holds no {METRICS_FILE}: name the folder of a training run")
    points: dict[str, list[tuple[float, float]]] = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = float(record["step"])
            values = {k: float(v) for k, v in record.items() if k not in ("step", "time")}
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a line of metrics: {line!r}") from error
        for name, value in values.items():
            points.setdefault(name, []).append((step, value))
    return {name: Curve(*np.array(pairs, float).T) for name, pairs in points.items()}


def charts(
    runs: Mapping[str, Mapping[str, Curve]],
    names: Sequence[str] | None = None,
    marks: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """One SVG a metric, a line a run, a run's colour the same in all of them.

    ``names`` defaults to every metric that any run has; one without a finite value is left out.
    ``marks`` are steps to point out, by run.
    """
    if names is None:
        names = list(dict.fromkeys(name for metrics in runs.values() for name in metrics))
    lines = {name: {run: m.get(name, _NOTHING) for run, m in runs.items()} for name in names}
    return {
        name: line_plot(curves, title=name, marks=marks)
        for name, curves in lines.items()
        if any(np.isfinite(curve.values).any() for curve in curves.values())
    }


def line_plot(
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    marks: Mapping[str, float] | None = None,
) -> str:
    """The curves in one SVG with axes and ticks; the i-th takes the i-th colour, empty or not.

    A curve's mark, where it has one within the axis, is a broken upright line in its colour.

    Long curves are thinned to means over runs of points; the axis takes in the middle 98 %
    of the values (and both ends of each curve), so that one outlier does not flatten the rest.
    """
    shown = [_thin(curve) for curve in curves.values()]
    drawn = [curve for curve in shown if len(curve.steps)]
    if not drawn:
        raise UserError(f"there is nothing to plot in {title or 'this chart'}")
    xs = np.concatenate([curve.steps for curve in drawn])
    ys = np.concatenate([curve.values for curve in drawn])
    ends = [y for curve in drawn for y in (curve.values[0], curve.values[-1])]
    low, high = np.quantile(ys, (0.01, 0.99))
    y_ticks = ticks(min(low, *ends), max(high, *ends))
    left, right = xs.min(), max(xs.max(), xs.min() + 1)
    x_at = _scale(left, right, _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)

    parts = [_opening(title, _HEIGHT)]
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(left, right):
        if left <= tick <= right:
            x, y = x_at(tick), _HEIGHT - _BOTTOM
            parts.append(f'<path class="rule" d="M{x:.1f} {y}v4"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y + 17}" text-anchor="middle">{_short(tick)}</text>'
            )
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">{html.escape(x_label)}'
        "</text>"
    )
    if y_label:
        parts.append(f'<text x="{_LEFT}" y="10">{html.escape(y_label)}</text>')
    for i, (name, curve) in enumerate(zip(curves, shown, strict=True)):
        colour = i % SERIES_COLOURS
        if len(curve.steps):
            parts.append(_line(curve, x_at, y_at, colour))
        mark = (marks or {}).get(name)
        if mark is not None and left <= mark <= right:
            path = f"M{x_at(mark):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"
            style = f'stroke="var(--line-{colour})" stroke-dasharray="4 3"'
            parts.append(f'<path class="mark" d="{path}" {style}/>')
    return "".join([*parts, "</svg>"])


def interval_plot(rows: Mapping[str, tuple[float, float, float]], title: str = "") -> str:
    """A row each: its name, a dot at its value, a whisker from its low to its high end.

    ``rows`` are (value, low, high), as an ``Interval`` is; the i-th takes the i-th colour. One that
    is not finite keeps its row and its colour, empty.
    """
    ends = [number for row in rows.values() if np.isfinite(row).all() for number in row]
    if not ends:
        raise UserError(f"there is nothing to plot in {title or 'this chart'}")
    labels = [_shortened(name) for name in rows]
    left = max(_LEFT, max(map(len, labels)) * _LETTER + 12)
    foot = _TOP + len(rows) * _ROW
    x_ticks = ticks(min(ends), max(ends), about=4)
    x_at = _scale(x_ticks[0], x_ticks[-1], left, _WIDTH - 2 * _RIGHT)

    parts = [_opening(title, foot + _BOTTOM - _TOP)]
    for tick in x_ticks:
        x = x_at(tick)
        parts.append(f'<path class="rule" d="M{x:.1f} {_TOP}V{foot}"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{tick:g}</text>')
    for i, (label, row) in enumerate(zip(labels, rows.values(), strict=True)):
        y = _TOP + (i + 0.5) * _ROW
        parts.append(
            f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}'
            "</text>"
        )
        if np.isfinite(row).all():
            colour = f"var(--line-{i % SERIES_COLOURS})"
            value, low, high = map(x_at, row)
            whisker = f"M{low:.1f} {y - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8"
            parts.append(f'<path d="{whisker}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            parts.append(f'<circle cx="{value:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at most ``low`` to at least ``high``."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _opening(title: str, height: float) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}">'
    )


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 3] + "..."


def _thin(curve: Curve) -> Curve:
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    run = math.ceil(len(steps) / _MOST_POINTS) or 1
    starts = np.arange(0, len(steps), run)
    counts = np.diff(np.append(starts, len(steps)))
    return Curve(np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts)


def _scale(low: float, high: float, start: float, end: float) -> _Axis:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _line(curve: Curve, x_at: _Axis, y_at: _Axis, colour: int) -> str:
    stroke = f'fill="none" stroke="var(--line-{colour})" stroke-width="1.6"'
    xs = [x_at(step) for step in curve.steps]
    ys = [min(max(y_at(value), _TOP), _HEIGHT - _BOTTOM) for value in curve.values]
    if len(xs) == 1:
        return f'<circle cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="3" {stroke}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" {stroke}/>'


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
