"""Claims from a file, decided by the records of comparisons."""

import json
from dataclasses import replace

import numpy as np
import pytest

from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.evaluation.claims import Claims
from emu_jax.evaluation.decisions import FAILS, HOLDS, VOID, Comparison, decide, gaps, overview

FILE = """
title = "Does it help?"
[arms]
floor = "base (simple)"
ceiling = "base (complex)"
ours = ["run_0", "run_1"]
[[gates]]
says = "There is a gap."
arm = "ceiling"
against = "floor"
figure = "right"
more_than = 0.15
kinds = ["count", "two"]
[[claims]]
name = "S1"
says = "It helps."
arm = "ours"
against = "floor"
figure = "right"
more_than = 0.0
kinds = ["count", "two"]
at_least = 1
[[claims]]
name = "S4"
says = "Contrast is kept."
arm = "ours"
against = "floor"
figure = "contrast"
within = 0.1
[[gaps]]
arm = "ours"
floor = "floor"
ceiling = "ceiling"
figure = "right"
[[tables]]
figure = "right"
arms = ["floor", "ours"]
kinds = ["two"]
"""
PROMPTS, EACH = 40, 5
SHARES = {
    "base (simple)": (0.2, 0.3),
    "base (complex)": (0.9, 0.9),
    "run_0": (0.6, 0.3),
    "run_1": (0.7, 0.3),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(FILE)
    return path


def record(shares=SHARES, bright=0.0, seed=0):
    """Of each prompt five images; the first half of the prompts asks for counts."""
    random = np.random.default_rng(seed)

    def images(count, two):
        hits = random.random(PROMPTS * EACH) < np.repeat([count, two], PROMPTS * EACH // 2)
        return [
            {"image": i, "kind": "count" if i < len(hits) // 2 else "two", "right": bool(hit)}
            for i, hit in enumerate(hits)
        ]

    contrast = {
        name: (0.5 + bright * name.startswith("run") + 0.05 * random.normal(size=200)).tolist()
        for name in shares
    }
    return {
        "prompts": [f"prompt {i // EACH}" for i in range(PROMPTS * EACH)],
        "images_per_prompt": EACH,
        "models": dict.fromkeys(shares),
        "contents": {"images": {name: images(*own) for name, own in shares.items()}},
        "metrics": {"contrast": {"columns": contrast}},
    }


def test_claims_are_decided_by_intervals_over_prompts_and_by_every_seed(file):
    claims, found = Claims.read(file), Comparison([record()])
    (gate,), (helps, kept) = decide(claims, found)
    assert gate.result == helps.result == kept.result == HOLDS
    count, two = helps.measured
    images = found.records[0]["contents"]["images"]
    rows = {name: np.array([one["right"] for one in own[:100]]) for name, own in images.items()}
    lead = (rows["run_0"].mean() + rows["run_1"].mean()) / 2 - rows["base (simple)"].mean()
    assert count.interval.value == pytest.approx(lead) and count.interval.low > 0.2
    assert count.seeds == pytest.approx(
        [rows[name].mean() - rows["base (simple)"].mean() for name in ("run_0", "run_1")]
    )
    assert two.interval.low < 0 < two.interval.high  # one kind of two is enough for this claim
    # The interval is over 20 prompts, not over 100 images: its bootstrap by hand.
    means = np.mean([rows["run_0"], rows["run_1"]], 0) - rows["base (simple)"]
    means = means.reshape(-1, EACH).mean(1)
    assert np.ptp(count.interval[1:]) == pytest.approx(
        2 * 1.96 * means.std() / np.sqrt(len(means)), rel=0.1
    )
    ((_, (gap,)),) = gaps(claims, found)
    shares = {name: np.mean([one["right"] for one in own]) for name, own in images.items()}
    ours, low = np.mean([shares["run_0"], shares["run_1"]]), shares["base (simple)"]
    assert gap.interval.value == pytest.approx((ours - low) / (shares["base (complex)"] - low))
    assert gap.interval.low < gap.interval.value < gap.interval.high
    (table,) = claims.tables
    for kinds in ((), ("two",)):
        rows = overview(replace(table, kinds=kinds), claims, found)
        assert [part.kind for part in rows["ours"]] == ["", *kinds]


def test_a_seed_that_disagrees_or_another_brightness_is_seen(file):
    claims = Claims.read(file)
    apart = record({**SHARES, "run_0": (1.0, 0.3), "run_1": (0.0, 0.3)})
    _, (helps, _) = decide(claims, Comparison([apart]))
    assert helps.measured[0].interval.low > 0 and helps.result == FAILS
    _, (helps, kept) = decide(claims, Comparison([record(bright=0.096)]))
    assert (helps.result, kept.result) == (
        HOLDS,
        FAILS,
    )  # 0.096 with its interval is not within 0.1
    assert kept.measured[0].p is not None and kept.measured[0].p < 1e-3


def test_less_than_asks_for_the_other_side(file):
    """The lead in counts is 0.52, with an interval from 0.43 to 0.61."""
    one = FILE.replace('kinds = ["count", "two"]\nat_least = 1', 'kinds = ["count"]')
    for bound, expected in ((0.3, FAILS), (0.55, FAILS), (0.7, HOLDS)):
        file.write_text(one.replace("more_than = 0.0", f"less_than = {bound}", 1))
        _, (helps, _) = decide(Claims.read(file), Comparison([record()]))
        assert helps.result == expected
    assert helps.measured[0].interval.low > 0.4 and helps.measured[0].interval.high < 0.65


def test_where_a_gate_fails_nothing_is_decided(file):
    shallow = record({**SHARES, "base (complex)": (0.3, 0.9)})
    (gate,), verdicts = decide(Claims.read(file), Comparison([shallow]))
    assert gate.result == FAILS and {one.result for one in verdicts} == {VOID}


def test_a_kind_of_prompts_that_fails_a_gate_is_left_out(file):
    """Contrast, too, is then of the prompts of the other kinds."""
    ours = 'kinds = ["count", "two"]\n'
    text = FILE.replace("[arms]", f"{ours}[arms]").replace(
        f"more_than = 0.15\n{ours}", "more_than = 0.15\n"
    )
    assert text != FILE.replace("[arms]", f"{ours}[arms]")
    file.write_text(text)
    shallow = record({**SHARES, "base (complex)": (0.9, 0.3), "run_0": (0.6, 0.9)})
    contrast = shallow["metrics"]["contrast"]["columns"]
    for name in ("run_0", "run_1"):
        contrast[name][100:] = [1.0] * 100  # of images of the kind that is left out
    claims, found = Claims.read(file), Comparison([shallow])
    (gate,), (helps, kept) = decide(claims, found)
    assert gate.result == "holds for count" and helps.result == kept.result == HOLDS
    assert [part.kind for part in helps.measured] == ["count", "two (left out)"]
    assert helps.measured[1].interval.low > 0.1 and kept.measured[0].kind == "count"
    ((_, (gap,)),) = gaps(claims, found)
    rows = {name: own[:100] for name, own in shallow["contents"]["images"].items()}
    low, *ours, high = (
        np.mean([one["right"] for one in rows[name]])
        for name in ("base (simple)", "run_0", "run_1", "base (complex)")
    )
    assert gap.interval.value == pytest.approx((np.mean(ours) - low) / (high - low))

    file.write_text(text.replace("at_least = 1", "at_least = 2"))
    _, (helps, kept) = decide(Claims.read(file), found)
    assert (helps.result, kept.result) == (VOID, HOLDS)
    with pytest.raises(UserError, match=r"of the kind 'twoo', .* its kinds are count, two"):
        decide(replace(claims, kinds=["count", "twoo"], gates=[]), found)
    nowhere = record({**SHARES, "base (complex)": (0.3, 0.3)})
    (gate,), verdicts = decide(claims, Comparison([nowhere]))
    assert gate.result == FAILS and {one.result for one in verdicts} == {VOID}


def test_arms_may_come_from_several_comparisons_of_the_same_prompts(file, tmp_path, capsys):
    whole = record()
    parts = [dict(whole, models=dict.fromkeys(names)) for names in (["run_0"], SHARES)]
    for i, part in enumerate(parts):
        kept = {name: whole["contents"]["images"][name] for name in part["models"]}
        part = part | {"contents": {"images": kept}}
        (tmp_path / f"{i}.json").write_text(json.dumps(part))
    names = [str(tmp_path / f"{i}.json") for i in range(2)]
    assert main(["claims", str(file), *names, f"--out={tmp_path}/out"]) == 0
    said = capsys.readouterr().out
    assert "| S1 | It helps. (ours - floor > 0 in 1 of 2) | right | count |" in said
    assert (tmp_path / "out" / "claims.md").read_text() in said
    images = whole["contents"]["images"]
    ours = np.mean([[one["right"] for one in images[name][100:]] for name in ("run_0", "run_1")])
    lines = [line for line in said.splitlines() if line.startswith("| ours | ")]
    (row,) = (line for line in lines if "%" not in line)
    assert f" | {ours:.3f} (" in row
    assert "equal" in (tmp_path / "out" / "index.html").read_text()
    other = whole | {"prompts": ["another"] * 200}
    with pytest.raises(UserError, match="are of different prompts"):
        Comparison([whole, other])
    with pytest.raises(UserError, match="no prompts or models: name files of emu-jax compare"):
        Comparison([{"config": {}}])
    with pytest.raises(UserError, match="has a model 'nobody'; they have base"):
        Comparison([whole]).values(["nobody"], "right")
    with pytest.raises(UserError, match="no figure 'sharpness' of run_0"):
        Comparison([whole]).values(["run_0"], "sharpness")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("more_than = 0.0", "", "needs one of more_than, less_than and within"),
        ("more_than = 0.0", "more_then = 0.0", "unknown entry 'more_then'"),
        ("more_than = 0.0", 'more_than = "0"', "more_than in .* is '0'"),
        ('arm = "ceiling"', 'arm = "roof"', "names an arm 'roof'"),
        ('says = "It helps."', "", r"\[\[claims\]\] of .* has no entry 'says'"),
        ("at_least = 1", "at_least = 3", "asks for 3 kinds and names 2"),
        ("within = 0.1", "within = ", "is not a file of claims"),
        ('floor = "base (simple)"', "floor = 3", "The arm floor of .* is 3"),
        ('ours = ["run_0", "run_1"]', "ours = []", "The arm ours"),
        ('ours = ["run_0", "run_1"]', 'ours = "run_{seed}"', "a variable seed: name it in the arm"),
        ("[arms]", "each = 3\n[arms]", r"\[each\] of .* is 3"),
    ],
)
def test_what_is_wrong_in_a_file_of_claims_is_named(file, old, new, said):
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        Claims.read(file)


def test_an_arm_stands_for_all_values_of_its_variables(file):
    several = """[each]
steps = [4, 20]
scale = ["1.50"]

[arms]
"at {steps}, {scale}" = ["run_0 ({steps}, {scale})", "run_1 ({steps}, {scale})"]
"""
    file.write_text(FILE.replace("[arms]\n", several, 1))
    arms = Claims.read(file).arms
    assert [name for name in arms if name.startswith("at")] == ["at 4, 1.50", "at 20, 1.50"]
    assert arms["at 20, 1.50"] == ["run_0 (20, 1.50)", "run_1 (20, 1.50)"]
    assert arms["ours"] == ["run_0", "run_1"]


SETS = """
title = "Sets"
[arms]
floor = "before"
ceiling = "ideal"
ours = ["run_0", "run_1"]
[[gates]]
name = "gap"
says = "It is twice as far,"
arm = "floor"
against = "ceiling"
times = 2.0
figure = "frechet_haystack"
more_than = 0.0
[[gates]]
name = "gap"
says = "or ten times."
arm = "floor"
against = "ceiling"
times = 10.0
figure = "frechet_haystack"
more_than = 0.0
[[claims]]
name = "half"
says = "Half of it is gone."
arm = "ours"
floor = "floor"
against = "ceiling"
figure = "frechet_haystack"
more_than = 0.5
[[claims]]
name = "spread"
says = "More than half is kept."
arm = "ours"
against = "floor"
times = 0.5
figure = "spread"
more_than = 0.0
[[tables]]
figure = "frechet_haystack"
"""


def sets(values, reach, shares=(1.0, 1.0)):
    """Distances of each model; the spread of the runs in shares of the first model's."""
    names = ("before", "ideal", "run_0", "run_1")
    spread = np.random.default_rng(0).uniform(1, 2, 30)
    shares = dict(zip(names, (1.0, 1.0, *shares), strict=True))
    return {
        "prompts": [f"prompt {i}" for i in range(30)],
        "models": dict.fromkeys(names),
        "pictures": {name: {"spread": (shares[name] * spread).tolist()} for name in names},
        "figures": {
            name: {
                "frechet_haystack": dict(value=x, low=x - reach, high=x + reach),
                "spread": dict(value=1.0, low=1.0, high=1.0),  # the values of images count
            }
            for name, x in zip(names, values, strict=True)
        },
    }


def test_distances_of_sets_are_claimed_by_their_intervals(tmp_path):
    """The same results as by closed forms; of the two gates with one name one holds."""
    path = tmp_path / "sets.toml"
    path.write_text(SETS)
    claims = Claims.read(path)
    gates, (half, spread) = decide(claims, Comparison([sets((10, 2, 3, 4), 0.5, (0.6, 0.55))]))
    assert [gate.result for gate in gates] == [HOLDS, FAILS]
    (part,) = gates[0].measured
    assert part.interval.value == 6 and part.seeds == [6]
    width = np.hypot(0.5, 2 * 0.5)  # of a difference of normal variables
    np.testing.assert_allclose(part.interval[1:], (6 - width, 6 + width), atol=0.05)
    assert half.result == HOLDS and half.measured[0].seeds == [7 / 8, 6 / 8]
    assert spread.result == HOLDS
    _, (half, spread) = decide(claims, Comparison([sets((10, 2, 3, 4), 5.0, (0.6, 0.45))]))
    assert half.result == VOID  # nothing is known of the distances
    gates, (half, spread) = decide(claims, Comparison([sets((10, 2, 3, 7), 0.5, (0.6, 0.45))]))
    assert gates[0].result == HOLDS and (half.result, spread.result) == (FAILS, FAILS)
    (tmp_path / "sets.json").write_text(json.dumps(sets((10, 2, 3, 4), 0.5)))
    assert main(["claims", str(path), f"{tmp_path}/sets.json", f"--out={tmp_path}/out"]) == 0
    said = (tmp_path / "out" / "claims.md").read_text()
    assert "(floor - 2 x ceiling > 0)" in said
    assert "(share of floor to ceiling that ours reaches > 0.5)" in said
