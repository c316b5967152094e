"""One program on several processes: connecting them, exchanging values, ending together."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from emu_jax.errors import LostProcess, UserError

# Seconds without a heartbeat after which a process counts as lost and the run is ended. The thread
# that sends heartbeats is blocked neither by Python nor by compilation.
HEARTBEAT = 40
# Error messages of jax, gloo, NCCL and the coordinator after the loss of another process.
_LOST = re.compile(
    r"Gloo [\w-]+ failed|NCCL operation \w+|[Cc]oordination ?[Ss]ervice|heartbeats?|Barrier \w+"
)


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    patience: int = 300,
) -> None:
    """Connects to the other processes of the run, before any use of devices; does nothing on a
    single machine.

    The coordinator (host:port), the number of processes and the index of this process come from the
    arguments, or from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from the
    cluster (Slurm, Open MPI, a TPU pod, GKE), which jax detects. A process that has ended waits
    ``patience`` seconds for the others.

    Raises:
      UserError: these values are incomplete or not numbers.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = processes if processes is not None else _number("JAX_NUM_PROCESSES")
    process = process if process is not None else _number("JAX_PROCESS_ID")
    if coordinator is None and not _in_a_cluster():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=patience,
        )
    except ValueError as error:
        raise UserError(
            f"Cannot connect to the other processes of this run ({error}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


@contextlib.contextmanager
def ending_together(report: Callable[[BaseException], int | None]) -> Iterator[None]:
    """If one of several processes fails, it exits at once, and so do the others.

    A normal exit would wait for the others, which wait for this process in a collective operation.
    An immediate exit closes its connections, which ends the others in turn, or the coordinator
    misses it after :data:`HEARTBEAT` seconds.

    ``report(error)`` prints the error and returns the exit status, or None for a defect, whose
    traceback is printed here. In a run of one process exceptions are raised as usual.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        status = report(_lost(error) or error)
        if status is None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if status is None else status)


def on_every_process(value: int) -> list[int]:
    """The value of every process, by process index; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def of_first_process(values: list[float]) -> list[float]:
    """The values of process 0, exactly; all processes must call it."""
    if jax.process_count() == 1:
        return values
    bits = np.array(values, np.float64).view(np.int32)  # devices have no 64-bit numbers
    return multihost_utils.broadcast_one_to_all(bits).view(np.float64).tolist()


def _lost(error: BaseException | None) -> LostProcess | None:
    """The LostProcess that an error is a sign of, or None if it has another cause."""
    while error is not None and not isinstance(error, UserError):
        found = _LOST.search(str(error))
        if found and isinstance(error, RuntimeError | ValueError):
            return LostProcess(
                f"Another process of this run is gone ({found[0]}); see its log for the cause, and "
                "run the same command on all of them to continue from the last checkpoint."
            )
        error = error.__cause__ or error.__context__
    return None


def _in_a_cluster() -> bool:
    """Whether jax should detect the cluster: on a plain machine that is slow or fails."""
    env = os.environ
    slurm = int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env
    mpi = "OMPI_MCA_orte_hnp_uri" in env
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    return slurm or mpi or kubernetes or _has_tpu()


def _has_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    nvidia = Path("/dev/nvidiactl").exists()  # There, vfio devices are no TPUs.
    return "tpu" in wanted and bool(chips) and not nvidia


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise UserError(f"{name} is {text!r}; it must be a number.")
    return None if text is None else int(text)
