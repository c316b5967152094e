"""Figures broken down by a column of the prompts."""

import json

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.categories import Groups, broken_down, by_figure
from emu_jax.evaluation.metrics import mean_interval, share_interval
from emu_jax.evaluation.prompt_sets import PromptSet

KINDS = ("b", "a|b", "a", "", "a", "b", "b")


def prompts(**columns):
    return PromptSet(tuple("abcdefg"), columns)


def test_a_prompt_belongs_to_the_categories_in_its_cell():
    groups = Groups.of(prompts(kind=KINDS, n=("10", "9", "9", "2", "2", "2", "2")))
    assert groups.column == "kind"
    assert {name: rows.tolist() for name, rows in groups.rows.items()} == {
        "(none)": [3],
        "a": [1, 2, 4],
        "b": [0, 1, 5, 6],
    }
    assert list(Groups.of(prompts(n=("10", "9", "9", "2", "2", "2", "2")), "N").rows) == [
        *("2", "9", "10")
    ]


def test_the_default_column_divides_the_prompts():
    assert Groups.of(prompts(other=KINDS)) is None
    assert Groups.of(prompts(category=("one",) * 7, type=KINDS)).column == "type"
    many = PromptSet(tuple(map(str, range(51))), {"kind": tuple(map(str, range(51)))})
    assert Groups.of(many) is None
    with pytest.raises(UserError, match="'kind' has more than 50 values"):
        Groups.of(many, "kind")
    with pytest.raises(UserError, match="no column 'none'; their columns are kind"):
        Groups.of(many, "none")


def test_every_category_has_its_number_and_its_interval():
    random = np.random.default_rng(0)
    values = {
        name: {"faithful": random.random(7) < 0.5, "contrast": random.random(7)}
        for name in ("runs/x", "real pictures")
    }
    groups = Groups.of(prompts(kind=KINDS))
    columns = by_figure(values) | {"sharpness": {"runs/x": list(range(7))}}
    section, record = broken_down(columns, groups, {"runs/x": "<x>"})
    assert record["n"] == {"(none)": 1, "a": 3, "b": 4, "all prompts": 7}
    for name, own in values.items():
        for figure, interval in (("faithful", share_interval), ("contrast", mean_interval)):
            found = record["figures"][figure][name]
            for category, rows in (*groups.rows.items(), ("all prompts", np.arange(7))):
                if len(rows) > 1 or figure == "faithful":
                    assert found[category] == interval(own[figure][rows])._asdict()
    single = record["figures"]["contrast"]["runs/x"]["(none)"]
    assert single == {"value": values["runs/x"]["contrast"][3], "low": None, "high": None}
    json.dumps(record, allow_nan=False)
    html = section.body()
    assert html.count("<details open>") == 2 and html.count("<details>") == 1
    assert "&lt;x&gt;" in html and "real images" in html and "nan" not in html
