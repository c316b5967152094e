"""The gated feed-forward's derivative, which is written out, against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from emu_jax.nn.transformer import GEGLU


def test_the_gates_derivative():
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((5, 3), np.float32), rng.standard_normal((5, 4), np.float32)
    module = GEGLU(3, 4, rngs=nnx.Rngs(0))
    y, pull = jax.vjp(module, jnp.asarray(x))
    given = torch.tensor(x, requires_grad=True)
    weight = torch.tensor(np.asarray(module.proj.kernel[...]))
    value, gate = (given @ weight).chunk(2, dim=-1)
    theirs = value * F.gelu(gate)
    theirs.backward(torch.tensor(dout))
    np.testing.assert_allclose(y, theirs.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(dout))[0], given.grad.numpy(), atol=1e-5)
