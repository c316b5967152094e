"""``emu-jax plan``: memory, modeled time and traffic of a training step on TPUs, without TPUs.

    emu-jax plan --config=FILE[:OPTIONS] --topology=v5e:16x16 [--topology=...] [--slices=N]
        [--profile] --out=DIR [--config.KEY=VALUE]

Compiles the step of ``emu-jax train`` for chips that need not be present, and prints one row for
each topology: memory, modeled time, traffic. No data set is read and no full-size array is created.
The exit status is 1 if a step does not fit.
"""

from collections.abc import Sequence

from absl import flags

from emu_jax.assembly.config import parse
from emu_jax.errors import UserError

PROGRAM = "emu-jax plan"


def main(argv: Sequence[str]) -> int:
    values = parse(argv, PROGRAM, _define)
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
    title = next(a.split("=", 1)[1] for a in argv if a.startswith("--config="))
    print(f"\nreport: {save(values.out, title, plans, values.profile)}")
    return 0 if all(plan.memory for plan in plans) else 1


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string("topology", [], "Chip and sides, e.g. v5e:16x16.", flag_values=values)
    flags.DEFINE_integer("slices", 0, "Slices; 0: as in the config.", flag_values=values)
    flags.DEFINE_boolean("profile", False, "Show the time of each part.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder for the report.", flag_values=values)
