"""The checkpoint from which a run on several hosts continues: all hosts must see the same one."""

import jax

from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.errors import UserError
from emu_jax.parallel.distributed import on_every_process


def newest(checkpoints: Checkpoints) -> int | None:
    """The newest step, the same on every host. Every process must call this.

    A host with a folder of its own would start a new run while the others continue theirs.

    Raises:
      UserError: the hosts see different folders or steps.
    """
    if jax.process_count() == 1:
        return checkpoints.latest()
    folder, step = checkpoints.directory, None
    if jax.process_index() == 0:
        folder.parent.mkdir(parents=True, exist_ok=True)
    on_every_process(0)  # A barrier: from here on process 0 has made the folder.
    # The folder is compared first, because opening it waits for the other processes.
    found = on_every_process(2 * folder.parent.exists() + folder.exists())
    if len(set(found)) == 1:
        step = checkpoints.latest()
        found = on_every_process(-1 if step is None else step)
    if len(set(found)) > 1:
        raise UserError(
            f"The hosts of this run do not see the same in {folder.parent}: --workdir must be one "
            "folder for all of them, on a shared disk or in gs://."
        )
    return step
