"""``emu-jax rewards REWARD ...``: the accuracies of trained rewards on pairs of every dimension.

REWARD is a run, an exported model or builtin:NAME of task=reward. The pairs are those of its
validation sources. A reward of one dimension should be near 50 % on pairs that differ in another
one.
"""

import json
from collections.abc import Sequence

from etils import epath

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
    parser.add_argument(
        "--out",
        type=path,
        default="",
        help="folder for rewards.json, which emu-jax claims reads, and the table as figures.md",
    )
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.reward_table import judge_pairs, record, table

    found = judge_pairs(arguments.rewards, arguments.select, arguments.data_dir)
    print(table(found))
    if arguments.out:
        folder = epath.Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "figures.md").write_text(f"{table(found)}\n")
        (folder / "rewards.json").write_text(json.dumps(record(found)))
    return 0
