"""``emu-jax rewards REWARD ...``: the accuracies of trained rewards on pairs of every dimension.

REWARD is a run, an exported model or builtin:NAME of task=reward. The pairs are those of its
validation sources. A reward of one dimension should be near 50 % on pairs that differ in another
one.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path
from emu_jax.data.places import DEFAULT_DATA_DIR


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax rewards", description=__doc__)
    parser.add_argument("rewards", nargs="+", type=path, help="trained rewards")
    parser.add_argument(
        "--select",
        default="",
        help='condition on the pairs, such as "split == test"; default: that of validation',
    )
    parser.add_argument(
        "--data_dir",
        type=path,
        default="",
        help=f"folder of the data sets; default that of the run, else {DEFAULT_DATA_DIR}",
    )
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.reward_table import accuracy_table

    print(accuracy_table(arguments.rewards, arguments.select, arguments.data_dir))
    return 0
