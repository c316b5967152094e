"""The server is killed while annotators answer."""

import people_load as load

from emu_jax.people import store as stores
from emu_jax.people.access import add_annotators
from emu_jax.people.dealing import deal
from emu_jax.people.store import open_store


def test_an_acknowledged_answer_survives_the_server(tmp_path):
    load.make_noise_study(tmp_path / "study", prompts=200, votes=6).close()
    store = open_store(tmp_path / "study")
    tokens = list(add_annotators(store, [f"annotator {i}" for i in range(6)]).values())
    assert deal(store) == 0
    server = load.Server(tmp_path / "study")
    try:
        workers = load.work(store, server, tokens, kills=5, seconds=0, think=0.01)
    finally:
        server.kill()
    assert load.check(store, workers) >= 5 * len(tokens)


def test_every_commit_is_synced(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SYNCHRONOUS", "FULL")
    store = stores.create_store(tmp_path)
    with store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
