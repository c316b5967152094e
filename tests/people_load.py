"""Annotators at once, and a server that is killed while they work.

    python tests/people_load.py [--annotators=100] [--kills=50] [--postgresql]

A study of noise is served by the real command in its own process.

1. Everyone sends one answer at the same instant: the median and the slowest are printed.
2. Everyone answers after a think time, as a person does, and loads the images of the next tasks;
   percentiles of the time of an answer are printed.
3. The server is killed (SIGKILL) and started again, many times, while annotators answer without a
   pause. In the end every acknowledged answer must be in the database, and no task may have two
   live answers.

``tests/people/test_crash.py`` runs a small one.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from postgresql import postgresql

from emu_jax.people.access import add_annotators
from emu_jax.people.dealing import deal
from emu_jax.people.store import Store, open_store


def make_noise_study(folder: Path, prompts: int, votes: int, database: str = "", side: int = 32):
    """A study of two systems whose images are noise, without the extras of a real one."""
    import numpy as np

    from emu_jax.evaluation.prompt_sets import PromptSet
    from emu_jax.people.making import Contender, Settings, make_study
    from emu_jax.people.store import create_store

    generator = np.random.default_rng(0)

    def make(rows):
        for _ in rows:
            yield generator.integers(0, 256, (side, side, 3), np.uint8)

    store = create_store(folder, database)
    settings = Settings(votes={"appeal": votes}, repeated=0, gold=0, training=False)
    texts = PromptSet(tuple(f"prompt {i}" for i in range(prompts)))
    make_study(
        store, [Contender("one", "one", make), Contender("two", "two", make)], texts, settings
    )
    return store


class Server:
    """The real command in a process of its own, at a port that stays the same."""

    def __init__(self, folder: Path, database: str = ""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = ["people", "serve", str(folder), f"--port={self.port}", f"--database={database}"]
        self._command = [sys.executable, "-m", "emu_jax", *command]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the server does not start") from None
                time.sleep(0.02)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Worker(threading.Thread):
    """An annotator who answers until ``stop``, and sends each answer until it is acknowledged.

    ``think`` is the mean time before an answer, in seconds. With ``together`` everyone sends one
    answer only, when all are ready.
    """

    def __init__(
        self,
        port: int,
        token: str,
        stop: threading.Event,
        think: float = 0.0,
        together: threading.Barrier | None = None,
    ):
        super().__init__()
        self.port, self.token, self.stop, self.think = port, token, stop, think
        self.together = together
        self.acknowledged: dict[str, str] = {}  # task -> answer
        self.seconds: list[float] = []
        self.cookie = f"annotator={token}"
        self.csrf = ""
        self.connection: http.client.HTTPConnection | None = None
        self.random = random.Random(token)
        self.loaded: set[str] = set()

    def request(self, method: str, path: str, body: dict | None = None) -> bytes:
        """The body of a response; tries again while there is no server."""
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                headers = {"Cookie": self.cookie, "X-CSRF-Token": self.csrf}
                start = time.perf_counter()
                self.connection.request(method, path, json.dumps(body) if body else None, headers)
                response = self.connection.getresponse()
                content = response.read()
                if response.status == 200:
                    if method == "POST":
                        self.seconds.append(time.perf_counter() - start)
                    return content
                if response.status != 429:
                    raise RuntimeError(f"{method} {path}: {response.status}")
            except (OSError, http.client.HTTPException):
                self.connection = None
                if self.stop.is_set():
                    raise SystemExit from None
            time.sleep(0.02)

    def look(self, state: dict) -> None:
        """Loads the images of the next tasks as a browser does, and thinks."""
        for task in state["tasks"]:
            if self.think and task["id"] not in self.loaded:
                self.loaded.add(task["id"])
                for side in "ab":
                    self.request("GET", f"/image/{task['id']}/{side}")
        if self.together:
            self.together.wait()
        elif self.think:
            self.stop.wait(self.random.expovariate(1 / self.think))

    def run(self) -> None:
        page = self.request("GET", "/").decode()
        self.csrf = page.partition('data-csrf="')[2].partition('"')[0]
        state = json.loads(self.request("GET", "/state"))
        while state["tasks"]:
            self.look(state)
            if self.stop.is_set():
                break
            task, answer = state["tasks"][0]["id"], self.random.choice(["a", "tie", "b"])
            key = f"{self.random.getrandbits(128):032x}"
            sent = {"task": task, "answer": answer, "key": key, "seconds": 1.0}
            state = json.loads(self.request("POST", "/answer", sent))["state"]
            self.acknowledged[task] = answer
            if self.together:
                break
            if self.random.random() < 0.2:  # a browser that missed the acknowledgement
                self.request("POST", "/answer", sent)


def check(store: Store, workers: list[Worker]) -> int:
    """Compares what was acknowledged with the database; returns the number of live answers."""
    from sqlalchemy import select

    from emu_jax.people import tables

    answers, tasks = tables.answers, tables.tasks
    query = (
        select(tasks.c.public, answers.c.answer)
        .join(tasks, tasks.c.id == answers.c.task)
        .where(answers.c.live == 1)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    kept = dict(tuple(row) for row in rows)
    assert len(kept) == len(rows), "an answer is counted twice"
    for worker in workers:
        for task, answer in worker.acknowledged.items():
            assert kept.get(task) == answer, f"an acknowledged answer is lost: {task}"
    return len(rows)


def work(
    store: Store, server: Server, tokens: list[str], kills: int, seconds: float, think: float
) -> list[Worker]:
    """Lets annotators answer for some seconds, or through some kills of the server."""
    stop = threading.Event()
    workers = [Worker(server.port, token, stop, think) for token in tokens]
    for worker in workers:
        worker.start()
    try:
        for _ in range(kills):
            before = sum(len(worker.acknowledged) for worker in workers)
            while sum(len(worker.acknowledged) for worker in workers) < before + len(workers):
                if not any(worker.is_alive() for worker in workers):
                    raise RuntimeError("nobody has anything left to answer")
                time.sleep(0.01)
            time.sleep(random.random() * 0.05)
            server.kill()
            server.start()
        time.sleep(seconds)
    finally:
        stop.set()
    for worker in workers:
        worker.join()
    return workers


def burst(server: Server, tokens: list[str]) -> list[Worker]:
    """Everyone sends one answer at the same instant."""
    together, stop = threading.Barrier(len(tokens)), threading.Event()
    workers = [Worker(server.port, token, stop, together=together) for token in tokens]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return workers


def times_of(workers: list[Worker]) -> list[float]:
    """The times of all answers, in milliseconds, in ascending order."""
    return sorted(1000 * seconds for worker in workers for seconds in worker.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotators", type=int, default=100)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds before an answer")
    parser.add_argument("--database", default="", help="its URL; default SQLite")
    parser.add_argument("--postgresql", action="store_true", help="on a new server of its own")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        study = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "study"
        database = stack.enter_context(postgresql()) if args.postgresql else args.database
        make_noise_study(study, 500, 20, database).close()
        store = open_store(study, database)
        people = add_annotators(store, [f"annotator {i}" for i in range(args.annotators)])
        tokens = list(people.values())
        deal(store)
        server = Server(study, database)
        first = burst(server, tokens)
        times = times_of(first)
        print(
            f"{len(times)} answers at the same instant: median {statistics.median(times):.0f} ms, "
            f"slowest {times[-1]:.0f} ms",
            flush=True,
        )
        second = work(store, server, tokens, 0, args.seconds, args.think)
        times = times_of(second)
        p50, p95, p99 = (statistics.quantiles(times, n=100)[i - 1] for i in (50, 95, 99))
        print(
            f"{args.annotators} annotators, {len(times)} answers in {args.seconds:.0f} s: "
            f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms",
            flush=True,
        )
        third = work(store, server, tokens, args.kills, 1, 0.01)
        server.kill()
        counts = [check(store, workers) for workers in (first, second, third)]
        print(f"{args.kills} kills: {counts[-1]} answers, none lost and none twice")


if __name__ == "__main__":
    main()
