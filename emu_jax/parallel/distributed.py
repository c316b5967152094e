"""One program on many processes: finding the others."""

import os
from pathlib import Path

import jax

from emu_jax.errors import UserError


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
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        raise UserError(
            f"The other processes of this run cannot be found ({error}); set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


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
