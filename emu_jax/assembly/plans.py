"""A config's training step and sampler, compiled for TPUs or GPUs that need not be present."""

import jax
from ml_collections import ConfigDict

from emu_jax.assembly.cost import model_flops, step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh, sampling_mesh
from emu_jax.parallel.placement import placement
from emu_jax.parallel.sharding import abstract_params
from emu_jax.planning.chips import Topology
from emu_jax.planning.inputs import abstract_frozen
from emu_jax.planning.plan import Plan, plan_sampler, plan_step
from emu_jax.tasks.base import cast
from emu_jax.training.state import abstract_state


def plan(config: ConfigDict, topology: Topology) -> Plan:
    """The config's training step on one topology."""
    settings = {**config.mesh, "slices": topology.slices}
    mesh = make_mesh(**settings, devices=topology.devices)
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    frozen = abstract_frozen(task, mesh, unused_networks(config, task))
    batch = step_batch(config, task, frozen, mesh)
    state = abstract_state(task, mesh)
    return plan_step(
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


def plan_sampling(config: ConfigDict, topology: Topology, images: int = 1) -> Plan:
    """The config's sampler on one topology: ``images`` at once, rounded up to a multiple of the
    chips, with the parameters in the compute dtype. Fewer images than chips of one slice are
    divided themselves, and every chip has all parameters
    (:func:`emu_jax.parallel.mesh.sampling_mesh`). It reads the outputs of the text encoders where
    training does (``data.cache_text``), else it encodes the prompts.
    """
    if images < len(topology.devices) and topology.slices == 1:
        mesh = sampling_mesh(images, topology.devices)
    else:
        mesh = make_mesh(**{**config.mesh, "slices": topology.slices}, devices=topology.devices)
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    if task.generator is None:
        raise UserError(f"The task {config.task} draws no images: use --measure=train.")
    unused = unused_networks(config, task)
    frozen = abstract_frozen(task, mesh, unused)
    params = jax.eval_shape(
        lambda: cast(task.init(jax.random.key(0))[0], task.sampling_dtype or "float32")
    )
    params = abstract_params(params, mesh)
    side, from_states = config.data.image_size, bool(config.data.cache_text)
    return plan_sampler(task, topology, mesh, params, frozen, side, images, from_states)
