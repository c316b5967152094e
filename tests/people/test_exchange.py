"""Answers leave and enter a study, and its report says what they say."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, update
from studies import PROMPTS, SYSTEMS, Running, make

from emu_jax.cli.main import main
from emu_jax.evaluation.measuring import open_metrics
from emu_jax.people import tables
from emu_jax.people.exchange import as_csv
from emu_jax.people.images import decode
from emu_jax.people.results import answer_rows, conduct, votes

BASE, TUNED = SYSTEMS[1], SYSTEMS[0]


def truth(running):
    """task -> the side of the first system's image, which only the database knows."""
    with running.store.read() as connection:
        query = select(tables.tasks.c.public, tables.tasks.c.swapped)
        return {public: "b" if swapped else "a" for public, swapped in connection.execute(query)}


@pytest.fixture
def answered(tmp_path):
    """A study in which everyone prefers the first system's images, whichever side they are on, and
    finds that both images show their text.
    """
    running = Running(make(tmp_path, "--appeal_votes=3", "--faithfulness_votes=3"))
    side = truth(running)

    def choose(task):
        return side[task["id"]] if task["question"] == "appeal" else "both"

    for name in running.tokens:
        running.person(name).finish(choose)
    return running


def test_preferences_are_found_on_whichever_side(answered):
    rows = answer_rows(answered.store)
    first, second = dict.fromkeys(row.first for row in rows if row.counts), None
    first = next(iter(first))
    second = next(row.second for row in rows if row.counts)
    assert first.endswith(TUNED) and second.endswith(BASE)
    appeal = votes(rows, "appeal", first, second)
    assert len(appeal) == 3 * len(PROMPTS) and set(appeal.outcome) == {-1}
    assert set(votes(rows, "faithfulness", first, second).outcome) == {0}
    own = conduct([row for row in rows if row.annotator == 1])
    assert own.seconds == 1.5 and own.checks[0] == own.checks[1]


def test_the_report_has_the_tables_and_the_same_figures_as_json(answered, tmp_path):
    study = str(answered.store.folder)
    metric = {
        "better": "higher",
        "columns": {
            str(tmp_path / TUNED): np.linspace(1, 2, len(PROMPTS)).tolist(),
            str(tmp_path / BASE): [0.0] * (len(PROMPTS) - 1) + [9.0],
        },
    }
    record = tmp_path / "compare.json"
    said = {"prompts": [p.strip() for p, _ in PROMPTS], "metrics": {"taste": metric}}
    record.write_text(json.dumps(said))
    out = tmp_path / "report"
    more = [f"--compare={record}", "--metrics=brisque"]
    assert main(["people", "report", study, f"--out={out}", *more]) == 0
    page, found = (out / "index.html").read_text(), json.loads((out / "people.json").read_text())
    versus = f"{BASE} against {TUNED}"
    appeal = found["appeal"]["preferences"][versus]["all prompts"]
    assert appeal["pairs"] == len(PROMPTS) and appeal["lose"]["count"] == len(PROMPTS)
    assert appeal["win"]["share"] == 0 and appeal["p"] == 2 / 2 ** len(PROMPTS)
    assert found["faithfulness"]["preferences"][versus]["all prompts"]["tie"]["share"] == 1
    assert found["appeal"]["preferences"][versus]["category: simple"]["pairs"] == 3
    assert found["appeal"]["agreement"][versus]["alpha_nominal"] is None  # all votes are equal
    taste = found["appeal"]["metrics"]["taste"][versus]["value"]
    assert taste == pytest.approx(1 - 1 / len(PROMPTS))
    meter = open_metrics(["brisque"], "")["brisque"]
    scores = [
        meter.rows(
            [decode((tmp_path / name / f"{name}_{i}.png").read_bytes()) for i in range(6)],
            [prompt for prompt, _ in PROMPTS],
        )
        for name in (TUNED, BASE)
    ]
    assert found["appeal"]["metrics"]["brisque"][versus]["value"] == np.mean(scores[0] < scores[1])
    for words in ("Visual appeal", "Text faithfulness", "lost most clearly", "Annotators"):
        assert words in page
    assert "100.0% (61.0% to 100.0%)" in page.replace("<small>", "").replace("</small>", "")
    assert "&lt;b&gt;a &quot;blue&quot; disc" in page and "<b>a" not in page

    assert main(["people", "report", study, "--metrics=contrast"]) == 2
    record.write_text(json.dumps({**said, "prompts": ["others"]}))
    assert main(["people", "report", study, f"--compare={record}"]) == 2


def test_pairs_without_all_votes_wait(tmp_path):
    running = Running(make(tmp_path, "--appeal_votes=3", "--faithfulness_votes=0"))
    running.person("anna").finish(lambda task: "tie")
    study, out = str(running.store.folder), tmp_path / "out"
    assert main(["people", "report", study, f"--out={out}"]) == 0
    found = json.loads((out / "people.json").read_text())
    assert "faithfulness" not in found and "preferences" not in found["appeal"]
    assert "No pair has 3 votes yet" in (out / "index.html").read_text()
    assert main(["people", "report", study, f"--out={out}", "--least_votes=1"]) == 0
    found = json.loads((out / "people.json").read_text())
    (preference,) = found["appeal"]["preferences"].values()
    assert preference["all prompts"]["pairs"] == len(PROMPTS)


def test_exports_can_be_imported_elsewhere(answered, tmp_path, capsys):
    study = str(answered.store.folder)
    names = [str(tmp_path / f"answers.{kind}") for kind in ("csv", "parquet")]
    formula = "=HYPERLINK(1)"  # no cell may be one in a spreadsheet
    with answered.store.write() as connection:
        one = tables.annotators.c.id == 1
        connection.execute(update(tables.annotators).where(one).values(name=formula))
    for name in names:
        assert main(["people", "export", study, name]) == 0
    with open(names[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert pq.read_table(names[1]).num_rows == len(rows)
    assert f"'{formula}" in {row["annotator"] for row in rows}
    assert formula in pq.read_table(names[1])["annotator"].to_pylist()
    counted = [row for row in rows if row["role"] == "study" and row["repeated"] == "False"]
    assert len(counted) == 2 * 3 * len(PROMPTS)
    assert {row["winner"] for row in counted if row["question"] == "appeal"} == {
        str(tmp_path / TUNED)
    }
    assert {row["prompt"] for row in counted} == {prompt.strip() for prompt, _ in PROMPTS}

    with answered.store.write() as connection:  # the same study before anyone answered
        connection.execute(update(tables.annotators).values(left_out=True))
    assert not [row for row in answer_rows(answered.store) if row.counts]
    assert main(["people", "import", study, names[0]]) == 0
    assert f"{len(counted)} answers imported" in capsys.readouterr().out
    again = [row for row in answer_rows(answered.store) if row.counts]
    assert len(again) == len(counted) and {row.seconds for row in again} == {1.5}
    appeal = [row.outcome for row in again if row.question == "appeal"]
    assert set(appeal) == {-1}
    with answered.store.read() as connection:
        people = connection.execute(select(tables.annotators.c.name)).scalars().all()
    assert f"{formula} (imported)" in people
    assert main(["people", "import", study, names[0]]) == 2
    assert "imported before" in capsys.readouterr().err


def test_label_studios_pairs_are_imported(tmp_path):
    running = Running(make(tmp_path), ())
    data = {"model_a": BASE, "model_b": TUNED, "prompt": PROMPTS[0][0]}

    def annotation(by, result, cancelled=False):
        return {
            "completed_by": by,
            "was_cancelled": cancelled,
            "lead_time": 3.5,
            "created_at": "2026-03-09T22:16:08.728353Z",
            "result": result,
        }

    def chosen(side):
        return [{"from_name": "pw", "type": "pairwise", "value": {"selected": side}}]

    tasks = [
        {
            "id": 1,
            "data": data,
            "annotations": [
                annotation(7, chosen("left")),
                annotation({"id": 8, "email": "x@example.org"}, chosen("right")),
                annotation(9, []),
                annotation(10, [], cancelled=True),
            ],
        }
    ]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    study = str(running.store.folder)
    assert main(["people", "import", study, str(file)]) == 0
    rows = [row for row in answer_rows(running.store) if row.counts]
    # The first system named is the tuned one: the base, on the left, is the second of the pair.
    assert [row.outcome for row in rows] == [1, -1, 0] and rows[0].seconds == 3.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(answer="left"), "no answer"),
        (lambda row: row.update(question="beauty"), "no answer"),
        (lambda row: row.update(prompt="another"), "no pair"),
        (lambda row: row.update(model_a="another"), "no pair"),
        (lambda row: row.update(seconds="-1"), "no number"),
        (lambda row: row.update(given="yesterday"), "no date"),
        (lambda row: row.pop("prompt"), "no column 'prompt'"),
    ],
)
def test_rows_of_another_study_add_nothing(change, message, tmp_path, capsys, study_of_one):
    running = study_of_one
    row = {
        "question": "appeal",
        "annotator": "zoe",
        "prompt": PROMPTS[0][0],
        "model_a": TUNED,
        "model_b": BASE,
        "answer": "a",
        "seconds": "2",
        "given": "2026-01-01T00:00:00",
    }
    changed = dict(row)
    change(changed)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, changed)
    writer.writeheader()
    if len(changed) == len(row):
        writer.writerow({**row, "annotator": "yan"})
    writer.writerow(changed)
    file = tmp_path / "answers.csv"
    file.write_text(stream.getvalue())
    assert main(["people", "import", str(running.store.folder), str(file)]) == 2
    assert message in capsys.readouterr().err
    assert answer_rows(running.store) == [] and as_csv(running.store).count(b"\n") == 1


@pytest.fixture(scope="module")
def study_of_one(tmp_path_factory):
    return Running(make(tmp_path_factory.mktemp("one"), prompts=PROMPTS[:2]), ())


def test_three_systems_are_ranked(tmp_path):
    """The first is better than the second, and the second than the third, in most votes."""
    make(tmp_path, prompts=PROMPTS[:4])
    third = tmp_path / "third"
    third.mkdir()
    for file in (tmp_path / BASE).iterdir():
        (third / file.name).write_bytes(file.read_bytes())
    systems = [str(tmp_path / TUNED), str(tmp_path / BASE), str(third)]
    arguments = [*systems, f"--prompts={tmp_path / 'prompts.tsv'}", "--faithfulness_votes=0"]
    out = tmp_path / "three"
    assert main(["people", "compare", *arguments, f"--out={out}", "--no_serve"]) == 0
    running = Running(out, ("a", "b", "c", "d", "e"))
    side, generator = truth(running), np.random.default_rng(0)
    for name in running.tokens:

        def choose(task):
            first = side[task["id"]]
            return first if generator.random() < 0.75 else {"a": "b", "b": "a"}[first]

        running.person(name).finish(choose)
    assert main(["people", "report", str(out)]) == 0
    found = json.loads((out / "report" / "people.json").read_text())
    assert len(found["appeal"]["preferences"]) == 3
    strengths = {name: one["value"] for name, one in found["appeal"]["strengths"].items()}
    assert list(strengths) == systems and sum(strengths.values()) == pytest.approx(0)


def test_power_is_one_line(capsys):
    assert main(["people", "power", "0.55", "--ties=0.1"]) == 0
    assert capsys.readouterr().out.startswith("783 pairs with a winner tell 55.0% from 50%")
    assert main(["people", "power", "0.5"]) == 2
