"""Which checkpoint a run on several hosts goes on from: one that all of them see."""

import jax

from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.parallel.distributed import on_every_process


def newest(checkpoints: Checkpoints) -> int | None:
    """The newest step, the same on every host; all must ask.

    A host with a folder of its own would start anew while the others go on.

    Raises:
      UserError: the hosts do not see the same.
    """
    if jax.process_count() == 1:
        return checkpoints.latest()
    folder, step = checkpoints.directory, None
    if jax.process_index() == 0:
        folder.parent.mkdir(parents=True, exist_ok=True)
    on_every_process(0)  # By now the first has made it, for whoever can see it.
    # The checkpoints' folder comes first: to open it is to wait for the others.
    seen = on_every_process(2 * folder.parent.exists() + folder.exists())
    if len(set(seen)) == 1:
        step = checkpoints.latest()
        seen = on_every_process(-1 if step is None else step)
    if len(set(seen)) > 1:
        raise UserError(
            f"The hosts of this run do not see the same in {folder.parent}: --workdir must be one "
            "folder for all of them, on a shared disk or in gs://."
        )
    return step
