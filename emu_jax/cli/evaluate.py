"""``emu-jax evaluate CHECKPOINT``: the measurements of ``emu-jax compare``, for one model."""

from collections.abc import Sequence

from emu_jax.cli import compare


def main(argv: Sequence[str]) -> int:
    return compare.report(argv, "evaluate", __doc__, "runs/evaluation")
