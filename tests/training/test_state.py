"""What a fresh training state holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.tasks.base import Group
from emu_jax.training.state import (
    abstract_state,
    averaged,
    group_paths,
    init_state,
    with_params,
)


class Task:
    def __init__(self, **patterns):
        self.frozen = {}
        self.groups = {
            name: Group(pattern, optax.adam(0.1), lambda n: 0.1, ema_decay=decay)
            for name, (pattern, decay) in patterns.items()
        }

    def init(self, key):
        params = {"net/kernel": jax.random.normal(key, (2, 3)), "net/bias": jnp.ones(3)}
        return {**params, "critic/kernel": jnp.ones((3, 1))}, {"latent/scale": jnp.ones(4)}


def test_a_fresh_state_averages_and_optimises_each_group_s_own_paths():
    task = Task(net=("net/", 0.9), critic=("critic/", None))
    state = init_state(task, jax.random.key(0))
    assert group_paths(task, state["params"]) == {
        "net": ["net/bias", "net/kernel"],
        "critic": ["critic/kernel"],
    }
    assert state["ema"].keys() == {"net/kernel", "net/bias"}
    for path, value in state["ema"].items():
        assert np.array_equal(value, state["params"][path])
    assert state["opt"]["net"][0].mu.keys() == {"net/kernel", "net/bias"}
    assert state["opt"]["critic"][0].mu.keys() == {"critic/kernel"}
    assert [int(state[name]) for name in ("step", "skipped", "skipped_in_row")] == [0, 0, 0]
    assert state["state"].keys() == {"latent/scale"}


def test_given_parameters_start_at_step_0_and_equal_their_average():
    """Quality-tuning starts this way: weights of another run, nothing else of it."""
    task = Task(net=("net/", 0.9), critic=("critic/", None))
    params, extra = task.init(jax.random.key(1))
    state = with_params(task, params, extra)
    shown = averaged(state)
    assert shown.keys() == params.keys()
    for path, value in params.items():
        assert np.array_equal(state["params"][path], value)
        assert np.array_equal(shown[path], value)
    assert not any(np.any(m) for m in jax.tree.leaves(state["opt"]["net"][0].mu))


def test_shapes_come_without_arrays():
    abstract = jax.eval_shape(lambda k: init_state(Task(net=("net/", 0.9)), k), jax.random.key(0))
    concrete = init_state(Task(net=("net/", 0.9)), jax.random.key(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract)]
    assert shapes == [np.shape(leaf) for leaf in jax.tree.leaves(concrete)]


def test_a_group_that_trains_nothing_is_refused():
    with pytest.raises(UserError, match=r"'denoiser/'.*critic/kernel"):
        init_state(Task(net=("denoiser/", None)), jax.random.key(0))


def test_the_abstract_state_has_the_shapes_of_the_real_one():
    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    task = Task(net=("net/", 0.9), critic=("critic/", None))
    mesh = make_mesh()
    abstract = abstract_state(task, mesh)
    assert described(abstract) == described(init_state(task, jax.random.key(0)))
    assert {x.sharding.mesh for x in jax.tree.leaves(abstract)} == {mesh}
