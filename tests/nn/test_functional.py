"""A module as pure functions of a flat dict."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emu_jax.nn.functional import Network, nest, subtree
from emu_jax.nn.layers import linear


class Pair(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([linear(2, 3, rngs=rngs), linear(3, 2, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))

    def first(self, x, *, scale):
        return self.layers[0](x) * scale


PAIR = Network(lambda rngs: Pair(rngs=rngs))


def test_paths_and_shapes():
    expected = {
        "layers/0/kernel": (2, 3),
        "layers/0/bias": (3,),
        "layers/1/kernel": (3, 2),
        "layers/1/bias": (2,),
    }
    assert {k: v.shape for k, v in PAIR.shapes().items()} == expected
    abstract = jax.eval_shape(PAIR.init, jax.random.key(0))
    assert {k: v.shape for k, v in abstract.items()} == expected
    assert all(isinstance(v, jax.ShapeDtypeStruct) for v in PAIR.shapes().values())


def test_init_depends_on_the_key_alone():
    a, b, c = (PAIR.init(jax.random.key(n)) for n in (0, 0, 1))
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])
    assert not np.array_equal(a["layers/0/kernel"], c["layers/0/kernel"])
    # No two layers share their draws.
    assert not np.array_equal(a["layers/0/kernel"].ravel(), a["layers/1/kernel"].ravel())


def test_calls_any_method_with_the_parameters_given():
    params = {k: np.full(v.shape, 2.0, np.float32) for k, v in PAIR.shapes().items()}
    x = np.array([[1.0, 3.0]], np.float32)
    np.testing.assert_array_equal(PAIR(params, x), [[3 * 10 * 2 + 2] * 2])
    np.testing.assert_array_equal(PAIR(params, x, method="first", scale=0.5), [[5.0] * 3])


def test_is_pure_and_differentiable():
    params = PAIR.init(jax.random.key(0))
    x = jnp.ones((1, 2))
    before = PAIR(params, x)
    gradient = jax.jit(jax.grad(lambda p: PAIR(p, x).sum()))(params)
    assert gradient.keys() == params.keys()
    np.testing.assert_array_equal(gradient["layers/1/bias"], np.ones(2))
    np.testing.assert_array_equal(PAIR(params, x), before)


def test_compute_follows_the_parameters_dtype():
    params = {k: v.astype(jnp.bfloat16) for k, v in PAIR.init(jax.random.key(0)).items()}
    assert PAIR(params, jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_subtree_undoes_nest():
    params = {"a/b": 1, "c": 2}
    assert nest("x", params) == {"x/a/b": 1, "x/c": 2}
    # "xy" begins with "x" but does not lie under it.
    assert subtree(nest("x", params) | nest("xy", params), "x") == params
