"""The same study on a PostgreSQL server, where Debian's package postgresql is installed."""

import threading

import pytest
from postgresql import SERVERS, postgresql
from sqlalchemy import create_engine
from studies import PROMPTS, Running, make

from emu_jax.cli.main import main
from emu_jax.data.source import open_source
from emu_jax.people.results import answer_rows

pytestmark = pytest.mark.skipif(not SERVERS, reason="needs Debian's package postgresql")


@pytest.fixture(scope="module")
def server():
    with postgresql() as url:
        yield url


@pytest.fixture
def database(server, request):
    """The URL of a database of the test's own on the one server."""
    name = request.node.name
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


def test_curation_in_postgresql(pictures, tmp_path, database):
    """A wall is sent, taken back and sent again; the data set has the second verdicts."""
    data_dir, out, place = tmp_path / "data", tmp_path / "study", f"--database={database}"
    (data_dir / "folder").mkdir(parents=True)
    (data_dir / "folder" / "tiny").symlink_to(pictures / "folder" / "tiny")
    curate = ["people", "curate", "folder/tiny", "--stage=recall", f"--data_dir={data_dir}"]
    assert main([*curate, f"--out={out}", "--no_serve", place]) == 0
    running = Running(out, ("anna",), database)
    person = running.person("anna")
    tasks = [task["id"] for task in person.state()["tasks"]]
    assert len(tasks) == 24

    def send(answer, key):
        sent = [{"task": one, "answer": answer, "key": key, "seconds": 0.5} for one in tasks]
        return person.client.post("/answer", json=sent, headers=person.headers).json()["state"]

    assert send("bad", "first time")["done"] == send("bad", "other tab")["done"] == 24
    reply = person.client.post("/undo", json={}, headers=person.headers)
    assert reply.json()["done"] == 0 and answer_rows(running.store) == []
    assert send("good", "second time")["done"] == 24
    assert "24 of 24" in running.lab()[1]
    assert (
        main(["people", "curated", str(out), "folder/seen", f"--data_dir={data_dir}", place]) == 0
    )
    manifest = open_source("folder/seen", data_dir).manifest
    assert manifest.column("recall_kept").tolist() == [1] * 24
    running.store.close()


def test_a_study_in_postgresql(tmp_path, database):
    votes = ("--appeal_votes=2", "--faithfulness_votes=1", f"--database={database}")
    study = make(tmp_path, *votes, "--checks=0.3", "--repeated=0.3", prompts=PROMPTS[:4])
    assert not (study / "study.sqlite").exists()
    running = Running(study, ("anna", "ben"), database)
    person = running.person("anna")
    task, replies = person.state()["tasks"][0]["id"], []
    sending = [
        threading.Thread(target=lambda i=i: replies.append(person.answer(task, "a", f"key {i:05}")))
        for i in (1, 1, 2, 2)
    ]
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 4
    assert len(answer_rows(running.store)) == 1  # though four connections inserted at once
    person.client.post("/undo", json={}, headers=person.headers)
    for name in running.tokens:
        running.person(name).finish(lambda task: "b")
    rows = [row for row in answer_rows(running.store) if row.counts]
    assert len(rows) == 4 * (2 + 1)
    assert main(["people", "report", str(study), f"--database={database}"]) == 0
    export = ["people", "export", str(study), str(tmp_path / "a.csv")]
    assert main([*export, f"--database={database}"]) == 0
    running.store.close()
