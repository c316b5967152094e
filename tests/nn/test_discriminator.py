"""The patch discriminator against a plain torch stack; its losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.nn.discriminator import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from emu_jax.nn.functional import Network


def _torch_stack(channels: int, layers: int, groups: int) -> torch.nn.Sequential:
    stack, inputs = [], 3
    for i in range(layers + 1):
        outputs = channels * min(2**i, 8)
        stack.append(torch.nn.Conv2d(inputs, outputs, 4, stride=2 if i < layers else 1, padding=1))
        if groups and i:
            stack.append(torch.nn.GroupNorm(groups, outputs))
        stack.append(torch.nn.LeakyReLU(0.2))
        inputs = outputs
    return torch.nn.Sequential(*stack, torch.nn.Conv2d(inputs, 1, 4, padding=1))


@pytest.mark.parametrize(("layers", "groups"), [(2, 4), (4, 2), (2, 0)])
def test_equals_torch(layers, groups):
    torch.manual_seed(0)
    reference = _torch_stack(4, layers, groups)
    network = Network(lambda rngs: PatchDiscriminator(4, layers, groups, rngs=rngs))
    params = {}
    convs = [m for m in reference if isinstance(m, torch.nn.Conv2d)]
    names = [f"convs/{i}" for i in range(layers + 1)] + ["conv_out"]
    for name, conv in zip(names, convs, strict=True):
        params[f"{name}/kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        params[f"{name}/bias"] = conv.bias.detach().numpy()
    norms = [m for m in reference if isinstance(m, torch.nn.GroupNorm)]
    for i, norm in enumerate(norms):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        params[f"norms/{i}/scale"] = norm.weight.detach().numpy()
        params[f"norms/{i}/bias"] = norm.bias.detach().numpy()
    assert params.keys() == network.shapes().keys()
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 48)).astype(np.float32)
    with torch.no_grad():
        want = reference(torch.tensor(x)).numpy()
    got = jax.jit(network)(params, np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, atol=1e-4)


def test_one_picture_is_judged_alone():
    """What BatchNorm would break: a picture's logits do not depend on its neighbours."""
    network = Network(lambda rngs: PatchDiscriminator(4, 2, 4, rngs=rngs))
    random = np.random.default_rng(0)
    params = {k: 0.1 * random.normal(size=v.shape) for k, v in network.shapes().items()}
    x = random.normal(size=(3, 16, 16, 3))
    alone, together = jax.jit(network)(params, x[:1]), jax.jit(network)(params, x)[:1]
    assert np.std(alone) > 0.01
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_losses():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.25])
    assert hinge_discriminator_loss(real, fake) == (0.5 / 2 + 1.25 / 2) / 2
    assert hinge_generator_loss(fake) == 2.75 / 2


def test_generator_gradients_where_the_fake_is_found_out():
    """The generator's loss still has a gradient at a logit of -20 (log(1 - sigma) has none)."""
    found_out = jnp.array(-20.0)
    np.testing.assert_allclose(jax.grad(hinge_generator_loss)(found_out), -1)
