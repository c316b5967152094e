"""``emu-jax plan``: memory, modeled time and traffic of a training step on TPUs, without TPUs.

    emu-jax plan --config=FILE[:OPTIONS] --topology=v5e:16x16 [--topology=...] [--slices=N]
        [--profile] --out=DIR [--config.KEY=VALUE]

Compiles the step of ``emu-jax train`` for chips that need not be present, and prints one row for
each topology: memory, modeled time, traffic. No data set is read and no full-size array is created.
The exit status is 1 if a step does not fit.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import counted
from emu_jax.assembly.config import config_parser, parse
from emu_jax.cli.arguments import add_out
from emu_jax.errors import UserError

PROGRAM = "emu-jax plan"


def main(argv: Sequence[str]) -> int:
    parser = config_parser(PROGRAM, __doc__)
    parser.add_argument(
        "--topology", action="append", help="chip and sides, e.g. v5e:16x16; repeatable"
    )
    parser.add_argument("--slices", type=counted, default=0, help="slices; 0: as in the config")
    parser.add_argument("--profile", action="store_true", help="show the time of each part")
    add_out(parser, None, "folder for the report")
    values = parse(argv, parser)
    if not values.topology:
        raise UserError(f"{PROGRAM} needs --topology=CHIP:SIDES, e.g. v5e:16x16 or v5p:4x4x8.")
    if not values.out:
        raise UserError(f"{PROGRAM} needs --out=DIR, the folder for the report.")

    from emu_jax.assembly.plans import plan
    from emu_jax.planning.chips import open_topology
    from emu_jax.planning.report import print_plans, save

    config = values.config
    slices = values.slices or config.mesh.slices
    opened = [open_topology(name, slices) for name in values.topology]
    plans = [plan(config, topology) for topology in opened]
    print_plans(plans, values.profile)
    print(f"\nreport: {save(values.out, values.config_file, plans, values.profile)}")
    return 0 if all(plan.memory for plan in plans) else 1
