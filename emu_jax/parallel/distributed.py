"""One program on many processes: finding the others, agreeing with them, ending with them."""

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

# Seconds without a sign of life after which a process is given up and the run is ended; the sign is
# given by a thread that neither Python nor compilation holds up.
HEARTBEAT = 40
# What jax, gloo, NCCL and the coordinator say when the other side is gone.
_GONE = re.compile(
    r"Gloo [\w-]+ failed|NCCL operation \w+|[Cc]oordination ?[Ss]ervice|heartbeats?|Barrier \w+"
)


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the run's other processes; does nothing on a single machine. Before any use of devices.

    The coordinator (host:port), the number of processes and this one's index come from the
    arguments, or from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from what
    runs the job: Slurm, Open MPI, a TPU pod, GKE, which jax itself knows how to ask.
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
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except ValueError as error:
        raise UserError(
            f"The other processes of this run cannot be found ({error}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


@contextlib.contextmanager
def ending_together(report: Callable[[BaseException], int | None]) -> Iterator[None]:
    """Of several processes, one that fails ends at once, and so do the others.

    To leave in the usual way is to wait for the others, who wait for this one in a collective
    operation. Ended, it breaks its connections, which ends them in turn, or is missed by the
    coordinator after :data:`HEARTBEAT` seconds.

    ``report(error)`` says what went wrong and gives the exit status; None: a defect, which leaves
    its traceback. On a single process exceptions take their usual way.
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
    """This number as each process has it; all must ask."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).tolist()


def _lost(error: BaseException | None) -> LostProcess | None:
    """What an error says of another process that is gone; None where it is about something else."""
    while error is not None and not isinstance(error, UserError):
        found = _GONE.search(str(error))
        if found and isinstance(error, RuntimeError | ValueError):
            return LostProcess(
                f"Another process of this run is gone ({found[0]}): see its log for why; the same "
                "command on all of them goes on from the last checkpoint."
            )
        error = error.__cause__ or error.__context__
    return None


def _in_a_cluster() -> bool:
    """Whether asking jax is worth it: on a plain machine its questions are slow or fail."""
    env = os.environ
    slurm = int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env
    mpi = "OMPI_MCA_orte_hnp_uri" in env
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    return slurm or mpi or kubernetes or _has_tpu()


def _has_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    nvidia = Path("/dev/nvidiactl").exists()  # There, vfio means something else.
    return "tpu" in wanted and bool(chips) and not nvidia


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise UserError(f"{name} is {text!r}; it must be a number.")
    return None if text is None else int(text)
