"""The gated feed-forward's derivatives, which are written out, against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from emu_jax.nn.transformer import GEGLU


@pytest.mark.parametrize("biased", [True, False])
def test_the_gates_derivatives(biased):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 5, 3), np.float32), rng.standard_normal((2, 5, 4), np.float32)
    module = GEGLU(3, 4, bias=biased, rngs=nnx.Rngs(0))
    if biased:
        module.proj.bias[...] = jnp.asarray(rng.standard_normal(8, np.float32))
    graph, params = nnx.split(module)
    y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, jnp.asarray(x))
    dparams, dx = pull(jnp.asarray(dout))
    given, weight, bias = (
        torch.tensor(np.asarray(z), requires_grad=True)
        for z in (x, module.proj.kernel[...], module.proj.bias[...] if biased else np.zeros(8))
    )
    value, gate = (given @ weight + bias).chunk(2, dim=-1)
    theirs = value * F.gelu(gate)
    theirs.backward(torch.tensor(dout))
    np.testing.assert_allclose(y, theirs.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(dx, given.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(dparams["proj"]["kernel"][...], weight.grad.numpy(), atol=1e-5)
    if biased:
        np.testing.assert_allclose(dparams["proj"]["bias"][...], bias.grad.numpy(), atol=1e-5)


def test_the_gate_is_the_exact_gelu_wherever_it_is_open_or_shut():
    module = GEGLU(1, 1, rngs=nnx.Rngs(0))
    module.proj.kernel[...], module.proj.bias[...] = jnp.array([[0.0, 1.0]]), jnp.array([1.0, 0.0])
    x = np.linspace(-12, 12, 10_001, dtype=np.float32)[:, None]
    y, pull = jax.vjp(module, jnp.asarray(x))
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    theirs = F.gelu(given)
    theirs.sum().backward()
    np.testing.assert_allclose(y, theirs.detach(), atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], given.grad, atol=1e-6)
