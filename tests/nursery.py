"""Training runs of several processes on one machine's CPU. A helper, not a test.

The processes are forked from one that has imported everything, which takes most of a small run's
time. Run as a program, this file is that process: it obeys the :class:`Nursery` of a test.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Nursery:
    """Starts runs; their logs, and lists of what each process read, go to files in ``folder``."""

    def __init__(self, folder: Path):
        import runs

        self.folder = folder
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with runs.quick():
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=runs.environment(1) | {"PYTHONPATH": path},
            )

    def start(self, name: str, command: list[str], processes: int = 1, devices: int = 1):
        """The process ids of a training command; of several, the first is the coordinator."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        pids = []
        for index in range(processes):
            env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
            if processes > 1:
                env["JAX_COORDINATOR_ADDRESS"] = address
                env |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
            reads, log = str(self.folder / f"{name}.{index}.reads"), str(self.log(name, index))
            arguments = command[3:]
            pids.append(self._ask({"arguments": arguments, "env": env, "log": log, "reads": reads}))
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
        """Trains to the end."""
        codes = self.wait(self.start(name, command, processes, devices))
        logs = "\n".join(self.log(name, index).read_text() for index in range(processes))
        assert codes == [0] * processes, logs

    def log(self, name: str, index: int) -> Path:
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

    def noted_read(self, index):
        thread.read.append(int(index))
        return read(self, index)

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
