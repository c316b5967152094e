"""Commands of one or several processes on one machine's CPU. A helper, not a test.

The processes are forked from one that has imported everything, which takes most of a small run's
time. Run as a program, this file is that process: it obeys the :class:`Nursery` of a test (fixture
``nursery``).
"""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import runs

ROOT = Path(__file__).parents[1]


class Nursery:
    """Starts commands under names of their own; logs, and lists of the batches that each process
    read, go to files in ``folder``.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=runs.environment(1) | {"PYTHONPATH": path},
        )

    def start(self, name: str, command: list[str], processes: int = 1, devices: int = 1):
        """The process ids of an ``emu-jax`` command; of several, the first is the coordinator."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        pids = []
        for index in range(processes):
            env = runs.devices_flag(devices)
            if processes > 1:
                env["JAX_COORDINATOR_ADDRESS"] = address
                env |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
            reads, log = str(self.folder / f"{name}.{index}.reads"), str(self.log(name, index))
            request = {"arguments": command, "env": env, "log": log, "reads": reads}
            pids.append(self._ask(request))
        return pids

    def wait(self, pids: list[int], seconds: float = 600) -> list[int]:
        """The exit codes; AssertionError where one takes longer."""
        codes, deadline = {}, time.monotonic() + seconds
        while len(codes) < len(pids):
            found = {pid: self._ask({"wait": pid}) for pid in pids if pid not in codes}
            codes |= {pid: code for pid, code in found.items() if code is not None}
            assert time.monotonic() < deadline, (codes, pids)
            time.sleep(0.02)
        return [codes[pid] for pid in pids]

    def run(self, name: str, command: list[str], processes: int = 1, devices: int = 1) -> None:
        """Runs a command to its end, which is a good one."""
        codes = self.wait(self.start(name, command, processes, devices))
        logs = "\n".join(self.log(name, index).read_text() for index in range(processes))
        assert codes == [0] * processes, logs

    def interrupt(self, name: str, command: list[str], number: int, when, devices: int = 1) -> int:
        """Sends signal ``number`` to a command as soon as ``when()``; the exit code."""
        (pid,) = self.start(name, command, devices=devices)
        deadline = time.monotonic() + 600
        while not when():
            code = self._ask({"wait": pid})
            if code is not None:
                return code
            assert time.monotonic() < deadline, self.log(name).read_text()
            time.sleep(0.001)
        os.kill(pid, number)
        return self.wait([pid])[0]

    def resume(self, name: str, command: list[str], workdir: Path) -> None:
        """Trains in ``workdir`` to the end, after SIGKILL when the first checkpoint was complete.
        Nothing is validated or previewed, which changes no array.
        """
        nothing = [f"--config.train.{name}_every=0" for name in ("validate", "preview")]
        command = [*command, f"--workdir={workdir}", *nothing]
        code = self.interrupt(f"{name}_killed", command, runs.KILL, runs.saved(workdir))
        assert code == -9, self.log(f"{name}_killed").read_text()
        self.run(name, command)
        assert "resumed from step" in self.log(name).read_text()

    def log(self, name: str, index: int = 0) -> Path:
        return self.folder / f"{name}.{index}.log"

    def reads(self, name: str, index: int) -> dict[tuple[bool, int], dict]:
        """(whether it is validation, n) -> what this process made of batch n."""
        lines = (self.folder / f"{name}.{index}.reads").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return {(line["validation"], line["n"]): line for line in found}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, request: dict):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> dict | None:
    """Forks what it is asked for. Returns, in the child, the request; in the parent, None."""
    import emu_jax.assembly.training
    import emu_jax.cli.train  # noqa: F401

    gc.set_threshold(100_000, 20, 50)  # as in tests/conftest.py
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def note_reads(path: Path) -> None:
    """From now on a line for every batch that is made, and the pictures read for it."""
    from emu_jax.data.pipeline import Loader
    from emu_jax.data.source import Source

    read, make, thread = Source.read, Loader.__call__, threading.local()

    def noted_read(self, index, further=""):
        if hasattr(thread, "read"):  # else it is read for something else than a batch
            thread.read.append(int(index))
        return read(self, index, further)

    def noted_make(self, n):
        thread.read = []
        batch = make(self, n)
        line = {"validation": self.spec.sequential, "n": int(n), "read": thread.read}
        with path.open("a") as file:
            file.write(json.dumps(line | {"record": batch["record"].tolist()}) + "\n")
        return batch

    Source.read, Loader.__call__ = noted_read, noted_make


def become(request: dict) -> int:
    """The child is the command from here on."""
    from emu_jax.cli.main import main

    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    note_reads(Path(request["reads"]))
    return main(request["arguments"])


if __name__ == "__main__":
    asked = serve()
    sys.exit(become(asked) if asked else 0)
