"""``emu-jax evaluate CHECKPOINT``: what ``emu-jax compare`` measures, for one model."""

from collections.abc import Sequence

from emu_jax.cli import compare


def main(argv: Sequence[str]) -> int:
    return compare.report(argv, "evaluate", __doc__, "runs/evaluation")
