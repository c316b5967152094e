"""``emu-jax train``: one config, one run.

The run lives in its workdir. The same command again resumes the run, or reports that it is done.
"""

from collections.abc import Sequence

from emu_jax.assembly.config import load

INTERRUPTED = 128 + 15  # the exit status of a process that SIGTERM ended


def main(argv: Sequence[str]) -> int:
    """Trains. Exit status 0: the run has ended by itself; 143: it was interrupted and can be
    resumed; 75: another process of the run was lost.
    """
    config, workdir = load(argv, "emu-jax train", __doc__)

    # A mistyped argument is reported before these take seconds to import.
    import jax

    from emu_jax.assembly.training import make_trainer, prepare
    from emu_jax.cli.main import report
    from emu_jax.parallel.distributed import ending_together

    prepare(config, workdir)
    with ending_together(report):
        reason = make_trainer(config, workdir).run()
    if jax.process_index() == 0:
        print(f"{reason}: {workdir}", flush=True)
    return INTERRUPTED if reason == "interrupted" else 0
