"""When to stop, and which step to keep: by what is held out, not by the loss.

Quality-tuning's loss goes on falling while the model forgets what its few pictures do not show;
Emu (Dai et al. 2023) stops although it falls. A criterion looks at the validations v_1, v_2, ... of
one metric alone:

    chosen   the first step with the best finite value
    better   v_i beats the reference by more than min_delta, and is the reference from then on
    stop     the last ``patience`` validations were not better

A value that is not finite is never better. The criterion is a pure function of the history, so a
resumed run that has the history stops where the unbroken one does.
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

    ``mode`` says whether the least ("min") or the greatest ("max") value is best.
    """

    metric: str
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self):
        if self.mode not in ("min", "max"):
            raise UserError(f'train.stop.mode is "min" or "max", not {self.mode!r}.')
        if self.patience < 1:
            raise UserError(
                f"train.stop.patience is a number of validations from 1 on, not {self.patience}."
            )
        if not 0 <= self.min_delta < math.inf:
            raise UserError(f"train.stop.min_delta is 0 or above, not {self.min_delta:g}.")

    def __call__(self, history: History) -> tuple[int | None, str | None]:
        """(chosen step so far, reason to stop); None: no value was finite; go on.

        Raises:
          UserError: a validation does not measure the metric.
        """
        sign = 1.0 if self.mode == "min" else -1.0
        chosen, best, reference, idle = None, math.inf, math.inf, 0
        for step, metrics in history:
            value = sign * measured(metrics, self.metric)
            idle += 1
            if not math.isfinite(value):
                continue
            if value < best:
                chosen, best = step, value
            if value < reference - self.min_delta:
                reference, idle = value, 0
        if idle < self.patience:
            return chosen, None
        times = "1 validation" if idle == 1 else f"{idle} validations"
        if chosen is None:
            return None, f"{self.metric} was not finite in {times}"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return chosen, f"{self._best(chosen, sign * best)} and has not improved{by} in {times}"

    def chosen(self, history: History) -> dict[str, Any] | None:
        """What the end of a run records of its choice; None where there was nothing to choose."""
        step, reason = self(history)
        if step is None:
            return None
        value = float(dict(history)[step][self.metric])
        reason = reason or self._best(step, value)
        return {"step": step, "metric": self.metric, "value": value, "reason": reason}

    def to_record(self, history: History) -> dict[str, Any]:
        """The history as JSON, as far as this criterion reads it."""
        values = [[step, float(metrics[self.metric])] for step, metrics in history]
        return {"metric": self.metric, "mode": self.mode, "values": values}

    def from_record(self, record: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]] | None:
        """The history of :meth:`to_record`; None of a criterion by which other steps were kept."""
        if (record.get("metric"), record.get("mode")) != (self.metric, self.mode):
            return None
        return [(step, {self.metric: value}) for step, value in record["values"]]

    def _best(self, step: int, value: float) -> str:
        return f"{self.metric} was best at step {step} ({value:.4g})"


def measured(metrics: Mapping[str, float], metric: str) -> float:
    """The value of a metric that the config names; UserError where no validation measures it."""
    if metric not in metrics:
        raise UserError(
            f"No validation measures {metric!r} (train.stop.metric or train.best_metric); there "
            f"are {', '.join(sorted(metrics)) or 'none'}."
        )
    return metrics[metric]
