"""Early stopping and the choice of the best step, by a validation metric instead of the loss.

The loss of quality-tuning keeps falling while the model forgets what its few images do not contain;
Emu (Dai et al. 2023) stops although the loss still falls. A criterion depends on the validation
values v_1, v_2, ... of one metric only:

    chosen   the first step with the best finite value
    better   v_i beats the reference by more than min_delta and becomes the new reference
    stop     the last ``patience`` validations were not better

A value that is not finite is never better. The criterion is a pure function of the history, so a
resumed run stops at the same step as an uninterrupted run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emu_jax.errors import UserError

History = Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True)
class EarlyStopping:
    """Stops when ``metric`` has not improved in ``patience`` validations.

    ``mode``: whether the smallest ("min") or the largest ("max") value is best.
    """

    metric: str
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise UserError(f'train.stop.mode is {self.mode!r}; use "min" or "max".')
        if self.patience < 1:
            raise UserError(
                f"train.stop.patience is {self.patience}; use 1 or more (a number of validations)."
            )
        if not 0 <= self.min_delta < math.inf:
            raise UserError(
                f"train.stop.min_delta is {self.min_delta:g}; use a finite number from 0 up."
            )

    def __call__(self, history: History) -> tuple[int | None, str | None]:
        """(chosen step so far, reason to stop). The step is None if no value was finite, the reason
        is None if training continues.

        Raises:
          UserError: a validation does not measure the metric.
        """
        sign = 1.0 if self.mode == "min" else -1.0
        chosen, best, reference, unimproved = None, math.inf, math.inf, 0
        for step, metrics in history:
            value = sign * measured(metrics, self.metric)
            unimproved += 1
            if not math.isfinite(value):
                continue
            if value < best:
                chosen, best = step, value
            if value < reference - self.min_delta:
                reference, unimproved = value, 0
        if unimproved < self.patience:
            return chosen, None
        times = "1 validation" if unimproved == 1 else f"{unimproved} validations"
        if chosen is None:
            return None, f"{self.metric} was not finite in {times}"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return chosen, f"{self._best(chosen, sign * best)} and has not improved{by} in {times}"

    def chosen(self, history: History) -> dict[str, Any] | None:
        """The record of the chosen step at the end of a run; None if no value was finite."""
        step, reason = self(history)
        if step is None:
            return None
        value = float(dict(history)[step][self.metric])
        reason = reason or self._best(step, value)
        return {"step": step, "metric": self.metric, "value": value, "reason": reason}

    def to_record(self, history: History) -> dict[str, Any]:
        """The values of this criterion's metric in the history, as JSON."""
        values = [[step, float(metrics[self.metric])] for step, metrics in history]
        return {"metric": self.metric, "mode": self.mode, "values": values}

    def from_record(self, record: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]] | None:
        """The history from :meth:`to_record`; None if the record is of another metric or mode, for
        which other steps were kept.
        """
        if (record.get("metric"), record.get("mode")) != (self.metric, self.mode):
            return None
        return [(step, {self.metric: value}) for step, value in record["values"]]

    def _best(self, step: int, value: float) -> str:
        return f"{self.metric} was best at step {step} ({value:.4g})"


def measured(metrics: Mapping[str, float], metric: str) -> float:
    """The value of a metric that the config names.

    Raises:
      UserError: no validation measures it.
    """
    if metric not in metrics:
        raise UserError(
            f"No validation measures {metric!r}, the value of train.stop.metric or "
            f"train.best_metric; the measured metrics are {', '.join(sorted(metrics)) or 'none'}."
        )
    return metrics[metric]
