"""The criterion of early stopping against histories written by hand."""

import json
import math

import pytest

from emu_jax.errors import UserError
from emu_jax.training.stopping import EarlyStopping

NAN, INF = math.nan, math.inf


def history(*values):
    """Validations every 100 steps."""
    return [(100 * i, {"kept/loss": v, "other": -v}) for i, v in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("settings", "values", "chosen", "reason"),
    [
        ({}, [], None, None),
        ({}, [0.5], 100, None),
        ({}, [0.5, 0.412, 0.6, 0.7], 200, None),
        (
            {},
            [0.5, 0.412, 0.6, 0.7, 0.42],
            200,
            "kept/loss was best at step 200 (0.412) and has not improved in 3 validations",
        ),
        # An improvement begins the count anew.
        ({}, [0.5, 0.6, 0.7, 0.4, 0.6, 0.7], 400, None),
        # Of equals the first is chosen, and an equal is no improvement.
        (
            dict(patience=2),
            [0.5, 0.5, 0.5],
            100,
            "kept/loss was best at step 100 (0.5) and has not improved in 2 validations",
        ),
        (
            dict(patience=1),
            [0.5, 0.6],
            100,
            "kept/loss was best at step 100 (0.5) and has not improved in 1 validation",
        ),
        (
            dict(mode="max", patience=2),
            [0.1, 0.9, 0.8, 0.85],
            200,
            "kept/loss was best at step 200 (0.9) and has not improved in 2 validations",
        ),
        # Creeping by less than min_delta a time: each is compared with the last improvement, so
        # 0.39 is one again; what is chosen is the best of all.
        (dict(min_delta=0.1, patience=3), [0.5, 0.46, 0.42, 0.39, 0.38], 500, None),
        (
            dict(min_delta=0.1, patience=2),
            [0.5, 0.46, 0.42, 0.39],
            400,
            None,
        ),
        (
            dict(min_delta=0.1, patience=2),
            [0.5, 0.46, 0.42],
            300,
            "kept/loss was best at step 300 (0.42) and has not improved by more than 0.1 in 2 "
            "validations",
        ),
        # What is not finite is never best, in either direction, and counts as no improvement.
        ({}, [NAN, 0.5, NAN, INF], 200, None),
        (
            {},
            [0.5, NAN, -INF, INF],
            100,
            "kept/loss was best at step 100 (0.5) and has not improved in 3 validations",
        ),
        (dict(patience=2), [NAN, INF], None, "kept/loss was not finite in 2 validations"),
        (dict(mode="max"), [0.5, INF], 100, None),
        # A history that went on although it was to stop says so with its own count.
        (
            dict(patience=1),
            [0.5, 0.6, 0.7],
            100,
            "kept/loss was best at step 100 (0.5) and has not improved in 2 validations",
        ),
    ],
)
def test_histories_written_by_hand(settings, values, chosen, reason):
    criterion = EarlyStopping("kept/loss", **settings)
    assert criterion(history(*values)) == (chosen, reason)


def test_the_record_of_the_choice():
    criterion = EarlyStopping("kept/loss", patience=2)
    assert criterion.chosen([]) is None and criterion.chosen(history(NAN)) is None
    running = {"step": 200, "metric": "kept/loss", "value": 0.412}
    said = "kept/loss was best at step 200 (0.412)"
    assert criterion.chosen(history(0.5, 0.412, 0.6)) == {**running, "reason": said}
    said += " and has not improved in 2 validations"
    assert criterion.chosen(history(0.5, 0.412, 0.6, 0.7)) == {**running, "reason": said}


def test_the_history_comes_back_from_json_bit_for_bit():
    criterion = EarlyStopping("kept/loss")
    past = history(1 / 3, NAN, 0.1 + 0.2, INF)
    record = json.loads(json.dumps(criterion.to_record(past)))
    found = criterion.from_record(record)
    assert [step for step, _ in found] == [100, 200, 300, 400]
    values = [metrics["kept/loss"] for _, metrics in found]
    assert values[0] == 1 / 3 and math.isnan(values[1]) and values[2:] == [0.1 + 0.2, INF]
    assert criterion(found) == criterion(past)


def test_the_history_of_another_criterion_is_not_taken_for_ones_own():
    record = EarlyStopping("kept/loss").to_record(history(0.5))
    assert EarlyStopping("kept/loss", patience=9, min_delta=0.1).from_record(record)
    assert EarlyStopping("kept/loss", "max").from_record(record) is None
    assert EarlyStopping("other").from_record(record) is None
    assert EarlyStopping("other").from_record({}) is None


@pytest.mark.parametrize(
    ("past", "words"),
    [(history(0.5), "metrics are kept/loss, other"), ([(100, {})], "metrics are none")],
)
def test_a_metric_that_is_not_measured_is_named_with_those_that_are(past, words):
    with pytest.raises(UserError, match=f"No validation measures 'kept/lost'.*{words}") as error:
        EarlyStopping("kept/lost")(past)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(mode="least"), 'mode is \'least\'; use "min" or "max"'),
        (dict(patience=0), "patience is 0; use 1 or more"),
        (dict(min_delta=-0.1), "min_delta is -0.1; use a finite number from 0 up"),
        (dict(min_delta=NAN), "min_delta is nan; use a finite number from 0 up"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        EarlyStopping("kept/loss", **settings)
