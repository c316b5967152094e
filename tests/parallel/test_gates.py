"""Both forms of the gate of feed-forward layers, and which devices get which."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emu_jax.nn.stack import Stack
from emu_jax.nn.transformer import FeedForward, gated, gated_in_one_pass
from emu_jax.parallel.gates import gate_by, make_gated
from emu_jax.parallel.mesh import make_mesh


def gradients(form, dtype):
    chance = np.random.default_rng(0)
    x, dout = (jnp.asarray(chance.normal(size=(3, 5, n)), dtype) for n in (16, 8))
    bias = jnp.asarray(chance.normal(size=16), jnp.float32)
    y, back = jax.vjp(form, x, bias)
    return (y, *back(dout))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_form_for_gpus_computes_the_same(dtype):
    (y, dx, dbias), (same, other, summed) = (
        gradients(form, dtype) for form in (gated, gated_in_one_pass)
    )
    assert np.array_equal(y, same) and other.dtype == dtype and summed.dtype == jnp.float32
    # With few bits an element may be rounded the other way.
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(dx.astype("float32"), other.astype("float32"), tolerance, tolerance)
    np.testing.assert_allclose(dbias, summed, rtol=5 * tolerance, atol=5 * tolerance)


def test_only_gpus_get_it_in_loops_too():
    def mesh(platform):
        return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))

    found = {name: make_gated(mesh(name)) for name in ("gpu", "cuda", "tpu", "cpu")}
    assert found == dict(gpu=gated_in_one_pass, cuda=gated_in_one_pass, tpu=gated, cpu=gated)
    assert make_gated(make_mesh()) is gated

    def build():
        return Stack([FeedForward(4, rngs=nnx.Rngs(i)) for i in range(2)], scan=True)

    def calls(stack):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(stack(x))))(jnp.ones((2, 4)))
        return str(jaxpr).count("optimization_barrier")

    assert calls(build()) < calls(gate_by(gated_in_one_pass, build()))
