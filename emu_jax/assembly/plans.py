"""A config's training step, compiled for TPUs that need not be present."""

from ml_collections import ConfigDict

from emu_jax.assembly.cost import model_flops, step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.planning.chips import Topology
from emu_jax.planning.inputs import abstract_frozen
from emu_jax.planning.plan import Plan, make_plan
from emu_jax.training.state import abstract_state


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
