"""Images of a data set are judged by people, and a data set comes out that a config can name."""

import pytest
from sqlalchemy import select
from studies import Running

from emu_jax.cli.main import main
from emu_jax.data.mixture import Captions, Selection
from emu_jax.data.source import open_source
from emu_jax.people import tables
from emu_jax.people.questions import accepts
from emu_jax.people.results import answer_rows


def study(root, data_dir, dataset, stage, *more):
    out = root / stage
    place = [dataset, f"--stage={stage}", f"--data_dir={data_dir}", f"--out={out}"]
    assert main(["people", "curate", *place, "--no_serve", *more]) == 0
    return out


def keys_of(running):
    """task -> the key of its image."""
    tasks, items, images = tables.tasks, tables.items, tables.images
    query = (
        select(tasks.c.public, images.c.key)
        .join(items, items.c.id == tasks.c.item)
        .join(images, images.c.id == items.c.first)
    )
    with running.store.read() as connection:
        return dict(tuple(row) for row in connection.execute(query))


def curated(running, name, data_dir):
    arguments = [str(running.store.folder), name, f"--data_dir={data_dir}"]
    return main(["people", "curated", *arguments])


def test_three_stages_make_a_data_set(pictures, tmp_path, capsys):
    """Recall throws out half, precision keeps two of four, and their captions are written anew."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "folder").mkdir()
    (data_dir / "folder" / "tiny").symlink_to(pictures / "folder" / "tiny")
    source = open_source("folder/tiny", data_dir)

    running = Running(study(tmp_path, data_dir, "folder/tiny", "recall"), ("anna",))
    person, keys = running.person("anna"), keys_of(running)
    state = person.state()
    assert len(state["tasks"]) == len(source) == 24  # the whole wall at once
    assert {task["question"] for task in state["tasks"]} == {"recall"}
    images = [person.client.get(f"/image/{task['id']}/a") for task in state["tasks"]]
    assert {image.status_code for image in images} == {200}
    sent = [
        {
            "task": task["id"],
            "answer": "bad" if keys[task["id"]] >= "12" else "good",
            "key": f"key of {task['id']}",
            "seconds": 0.2,
        }
        for task in state["tasks"][:-1]
    ]
    wrong = [{**sent[0], "task": "0" * 32}, {**sent[0], "answer": "ugly"}, "nonsense"]
    reply = person.client.post("/answer", json=[*wrong, *sent, *sent], headers=person.headers)
    assert reply.status_code == 200 and reply.json()["state"]["done"] == 23
    assert len(answer_rows(running.store)) == 23  # what is refused drops nothing else
    assert "recall" in running.lab()[1]
    assert curated(running, "folder/seen", data_dir) == 0
    assert "'recall_kept == 1'" in capsys.readouterr().out
    manifest = open_source("folder/seen", data_dir).manifest
    last = keys[state["tasks"][-1]["id"]]
    for key, kept in zip(manifest.column("key"), manifest.column("recall_kept"), strict=True):
        assert kept == (-1 if key == last else int(key < "12"))
    assert curated(running, "folder/seen", data_dir) == 2  # it is there already
    assert curated(running, "emoji/seen", data_dir) == 2

    few = "--select=recall_kept == 1 and key == 00.png|01.png|02.png|03.png"
    folder = study(tmp_path, data_dir, "folder/seen", "precision", few, "--votes=3")
    running = Running(folder)
    keys = keys_of(running)

    def judge(task):
        best = keys[task["id"]] in ("00.png", "01.png")
        return {"keep": best, "faults": [] if best else ["light", "story"]}

    for name in running.tokens:
        running.person(name).finish(judge)
    assert curated(running, "folder/best", data_dir) == 0
    source = open_source("folder/best", data_dir)
    assert source.manifest.select("precision_kept == 1").tolist() == [0, 1]
    assert source.manifest.column("precision_votes").tolist() == [3] * 4 + [0] * 20
    assert source.manifest.column("fault_light").tolist() == [0, 0, 3, 3] + [0] * 20

    folder = study(tmp_path, data_dir, "folder/best", "captions", "--select=precision_kept == 1")
    running = Running(folder, ("anna",))
    person = running.person("anna")
    assert all("disc" in task["captions"][0] for task in person.state()["tasks"])
    person.finish(lambda task: {"caption": "  A disc,\n by <hand>. "})
    assert curated(running, "folder/final", data_dir) == 0
    source = open_source("folder/final", data_dir)
    selection = Selection(source, select="captions_kept == 1")
    assert Captions([selection]).texts == ["", "A disc, by <hand>."]
    assert source.manifest.column("captions_before")[0] == ["a red disc", "red ball"]
    assert source.read(0) == open_source("folder/tiny", pictures).read(0)
    assert source.manifest.column("captions")[5] == ["a black disc", "black ball"]
    answers = running.lab()[0].get("/lab/answers.csv").text
    assert answers.count("\n") == 3 and "00.png" in answers
    assert main(["people", "report", str(folder)]) == 2


@pytest.mark.parametrize(
    ("question", "answer", "accepted"),
    [
        ("appeal", "tie", True),
        ("appeal", "both", False),
        ("appeal", ["a"], False),
        ("recall", "bad", True),
        ("recall", "a", False),
        ("precision", {"keep": True, "faults": ["light"]}, True),
        ("precision", {"keep": 1, "faults": []}, False),
        ("precision", {"keep": True, "faults": ["light", "light"]}, False),
        ("precision", {"keep": True, "faults": ["taste"]}, False),
        ("precision", {"keep": True, "faults": [["light"]]}, False),
        ("precision", {"keep": True, "faults": [], "more": 1}, False),
        ("captions", {"caption": "x"}, True),
        ("captions", {"caption": " "}, False),
        ("captions", {"caption": "x" * 2001}, False),
        ("another", "a", False),
    ],
)
def test_only_answers_of_a_question_are_accepted(question, answer, accepted):
    assert accepts(question, answer) is accepted
