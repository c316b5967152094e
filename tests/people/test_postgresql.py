"""The same study on a PostgreSQL server, where Debian's package postgresql is installed."""

import threading

import pytest
from postgresql import SERVERS, postgresql
from studies import PROMPTS, Running, make

from emu_jax.cli.main import main
from emu_jax.people.results import answer_rows

pytestmark = pytest.mark.skipif(not SERVERS, reason="needs Debian's package postgresql")


@pytest.fixture(scope="module")
def database():
    with postgresql() as url:
        yield url


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
