"""``emu-jax plan``: what a config's training step takes on TPUs, without having any.

    emu-jax plan --config=FILE[:OPTIONS] --topology=v5e:16x16 [--topology=...] [--slices=N]
        [--profile] --out=DIR [--config.KEY=VALUE]

Compiles the very step that ``emu-jax train`` would run, for chips that need not be there, and
prints a row a topology: memory, modelled time, traffic. Neither data sets nor full-size arrays are
made. Status 1 where a step does not fit.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from emu_jax.assembly.config import parse
from emu_jax.assembly.cost import model_flops, step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.planning.chips import Topology, open_topology
from emu_jax.planning.inputs import abstract_frozen
from emu_jax.planning.plan import Plan, make_plan
from emu_jax.planning.report import print_plans, save
from emu_jax.training.state import abstract_state

PROGRAM = "emu-jax plan"


def main(argv: Sequence[str]) -> int:
    values = parse(argv, PROGRAM, _define)
    if not values.topology:
        raise UserError(f"{PROGRAM} needs --topology=CHIP:SIDES, e.g. v5e:16x16 or v5p:4x4x8.")
    if not values.out:
        raise UserError(f"{PROGRAM} needs --out=DIR, where the report goes.")
    config = values.config
    slices = values.slices or config.mesh.slices
    opened = [open_topology(name, slices) for name in values.topology]
    plans = [plan(config, topology) for topology in opened]
    print_plans(plans, values.profile)
    title = next(a.split("=", 1)[1] for a in argv if a.startswith("--config="))
    print(f"\nreport: {save(values.out, title, plans, values.profile)}")
    return 0 if all(plan.memory for plan in plans) else 1


def plan(config: ConfigDict, topology: Topology) -> Plan:
    """The config's training step on one topology."""
    settings = {**config.mesh, "slices": topology.slices}
    mesh = make_mesh(**settings, devices=topology.devices)
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    frozen = abstract_frozen(task, mesh, unused_networks(config, task))
    batch = step_batch(config, task, frozen, mesh)
    state = abstract_state(task, mesh)
    return make_plan(
        task,
        topology,
        mesh,
        state,
        frozen,
        batch,
        model_flops(config, state, frozen, batch),
        seed=config.train.seed,
        accumulate=config.train.accumulate,
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string("topology", [], "Chip and sides, e.g. v5e:16x16.", flag_values=values)
    flags.DEFINE_integer("slices", 0, "Slices; 0: as the config says.", flag_values=values)
    flags.DEFINE_boolean("profile", False, "Show where the step goes.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder for the report.", flag_values=values)
