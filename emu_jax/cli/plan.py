"""``emu-jax plan``: memory, modeled time and traffic on TPUs or GPUs, without TPUs or GPUs.

    emu-jax plan --config=FILE[:OPTIONS] --topology=v5e:16x16 [--topology=...] [--slices=N]
        [--measure=train] [--measure=sample] [--pictures=1] [--profile] --out=DIR
        [--config.KEY=VALUE]

Compiles the step of ``emu-jax train`` or the sampler of ``emu-jax sample`` for chips that need not
be present, and prints one row for each topology: memory, modeled time, traffic. No data set is read
and no full-size array is created. The exit status is 1 if a program does not fit.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import counted, positive
from emu_jax.assembly.config import config_parser, parse
from emu_jax.cli.arguments import add_out
from emu_jax.errors import UserError

PROGRAM = "emu-jax plan"
MEASURES = ("train", "sample")


def main(argv: Sequence[str]) -> int:
    parser = config_parser(PROGRAM, __doc__)
    parser.add_argument(
        "--topology",
        action="append",
        help="chip and sides, e.g. v5e:16x16, or GPU and number, e.g. h100:8; repeatable",
    )
    parser.add_argument("--slices", type=counted, default=0, help="slices; 0: as in the config")
    parser.add_argument(
        "--measure", action="append", choices=MEASURES, help="what to plan; default: train"
    )
    parser.add_argument("--pictures", type=positive, default=1, help="images drawn at once")
    parser.add_argument("--profile", action="store_true", help="show the time of each part")
    add_out(parser, None, "folder for the report")
    values = parse(argv, parser)
    if not values.topology:
        raise UserError(f"{PROGRAM} needs --topology=CHIP:SIDES, e.g. v5e:16x16 or h100:8.")
    if not values.out:
        raise UserError(f"{PROGRAM} needs --out=DIR, the folder for the report.")

    from emu_jax.assembly.plans import plan, plan_sampling
    from emu_jax.planning.chips import open_topology
    from emu_jax.planning.gpus import is_gpu, open_gpus
    from emu_jax.planning.report import print_plans, save

    config = values.config
    slices = values.slices or config.mesh.slices
    opened = [
        open_gpus(name, slices) if is_gpu(name) else open_topology(name, slices)
        for name in values.topology
    ]
    plans = [
        plan(config, topology)
        if measure == "train"
        else plan_sampling(config, topology, values.pictures)
        for topology in opened
        for measure in dict.fromkeys(values.measure or ["train"])
    ]
    print_plans(plans, values.profile)
    print(f"\nreport: {save(values.out, values.config_file, plans, values.profile)}")
    return 0 if all(plan.memory for plan in plans) else 1
