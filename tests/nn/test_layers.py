"""Norms, convolutions and resampling against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from emu_jax.errors import UserError
from emu_jax.nn import layers
from emu_jax.nn.embeddings import TimestepEmbedding, sinusoids
from emu_jax.nn.functional import Network
from emu_jax.nn.resnet import ResnetBlock

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def first(x) -> torch.Tensor:
    """Channels last -> torch, channels first."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def norm(channels: int, *args, cls=layers.GroupNorm, **kwargs):
    module = cls(channels, *args, **kwargs, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = draw(channels), draw(channels)
    return module


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (3, 9, 12), (2, 12)])
def test_group_norm(shape):
    # A mean far from zero: a one-pass variance in fp32 would be off by 1e-2 here.
    x = draw(*shape) + 300
    ours = norm(12, 4, eps=1e-3)
    scale, bias = (torch.tensor(np.asarray(p[...])).double() for p in (ours.scale, ours.bias))
    theirs = F.group_norm(first(x).double(), 4, scale, bias, 1e-3)
    np.testing.assert_allclose(ours(jnp.asarray(x)), last(theirs), atol=5e-4)


def test_layer_norm():
    x = draw(3, 4, 10) + 300
    ours = norm(10, cls=layers.LayerNorm)
    scale, bias = (torch.tensor(np.asarray(p[...])).double() for p in (ours.scale, ours.bias))
    theirs = F.layer_norm(torch.tensor(x).double(), (10,), scale, bias, 1e-5)
    np.testing.assert_allclose(ours(jnp.asarray(x)), theirs.numpy(), atol=5e-4)


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (3, 12)])
@pytest.mark.parametrize("cls", [layers.GroupNorm, layers.LayerNorm])
def test_the_norms_derivatives(cls, shape):
    x, dout = draw(*shape) + 3, draw(*shape)
    module = norm(12, *([4] if cls is layers.GroupNorm else []), cls=cls)
    graph, params = nnx.split(module)
    _, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, jnp.asarray(x))
    dparams, dx = pull(jnp.asarray(dout))
    given = torch.tensor(x, requires_grad=True)
    scale, bias = (
        torch.tensor(np.asarray(p[...]), requires_grad=True) for p in (module.scale, module.bias)
    )
    if cls is layers.GroupNorm:
        theirs = F.group_norm(given.movedim(-1, 1), 4, scale, bias, 1e-5).movedim(1, -1)
    else:
        theirs = F.layer_norm(given, (12,), scale, bias, 1e-5)
    theirs.backward(torch.tensor(dout))
    for ours, other in ((dx, given), (dparams["scale"], scale), (dparams["bias"], bias)):
        np.testing.assert_allclose(ours[...], other.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("cls, args", [(layers.GroupNorm, (2,)), (layers.LayerNorm, ())])
def test_norms_keep_bf16_but_compute_in_fp32(cls, args):
    x = jnp.asarray(draw(2, 64, 8) + 100, jnp.bfloat16)
    module = norm(8, *args, cls=cls)
    y = module(x)
    assert y.dtype == jnp.bfloat16
    # Exactly the fp32 result, rounded once.
    np.testing.assert_array_equal(y, module(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_rms_norm():
    module, theirs = layers.RMSNorm(6, eps=1e-3, rngs=nnx.Rngs(0)), torch.nn.RMSNorm(6, eps=1e-3)
    x, scale = draw(2, 3, 6), draw(6)
    module.scale[...] = jnp.asarray(scale)
    theirs.weight.data = torch.tensor(scale)
    np.testing.assert_allclose(module(jnp.asarray(x)), theirs(torch.tensor(x)).detach(), atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    rounded_once = module(half.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(module(half), rounded_once)


def test_group_norm_names_what_does_not_divide():
    with pytest.raises(UserError, match="48 channels do not divide into 32"):
        layers.GroupNorm(48, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "kernel, stride, padding", [(1, 1, None), (3, 1, None), (3, 2, None), (3, 2, (0, 1))]
)
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_conv_pads_as_torch_does(kernel, stride, padding, size):
    module = layers.conv(3, 4, kernel, stride=stride, padding=padding, rngs=nnx.Rngs(0))
    x, before_after = draw(2, *size, 3), padding or (kernel // 2, kernel // 2)
    weight = torch.tensor(np.asarray(module.kernel[...]).transpose(3, 2, 0, 1))
    theirs = F.conv2d(F.pad(first(x), before_after * 2), weight, stride=stride)
    np.testing.assert_allclose(module(jnp.asarray(x)), last(theirs), atol=1e-5)


def test_resampling():
    x = draw(2, 4, 6, 3)
    np.testing.assert_array_equal(
        layers.upsample_nearest(jnp.asarray(x)), last(F.interpolate(first(x), scale_factor=2))
    )
    np.testing.assert_allclose(
        layers.downsample_mean(jnp.asarray(x)), last(F.avg_pool2d(first(x), 2)), atol=1e-6
    )
    with pytest.raises(UserError, match="5 x 6 cannot be halved"):
        layers.downsample_mean(jnp.zeros((1, 5, 6, 3)))


def test_upsample_to_an_odd_size():
    module = layers.Upsample(3, rngs=nnx.Rngs(0))
    x = draw(1, 3, 4, 3)
    grown = last(F.interpolate(first(x), size=(5, 7)))
    np.testing.assert_allclose(module(jnp.asarray(x), (5, 7)), module.conv(jnp.asarray(grown)))


def test_activations_are_torchs():
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    others = {
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # CLIP's own code
    }
    for name in layers.ACTIVATIONS:
        theirs = (others.get(name) or getattr(F, name))(torch.tensor(x))
        np.testing.assert_allclose(layers.activation(name)(jnp.asarray(x)), theirs, atol=1e-6)


def test_sinusoids_in_closed_form():
    t = np.array([0.0, 0.5, 999.0], np.float32)
    y = sinusoids(jnp.asarray(t), 6)
    angles = t[:, None].astype(np.float64) * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(y, np.concatenate([np.cos(angles), np.sin(angles)], -1), atol=1e-4)
    assert sinusoids(jnp.asarray(t, jnp.bfloat16), 6).dtype == jnp.float32
    assert sinusoids(jnp.zeros((2, 6)), 8).shape == (2, 6, 8)


def test_timestep_embedding():
    module = TimestepEmbedding(4, 8, act="gelu", rngs=nnx.Rngs(0))
    x = draw(2, 4)
    w1, w2 = (torch.tensor(np.asarray(m.kernel[...])) for m in (module.linear_1, module.linear_2))
    theirs = F.gelu(torch.tensor(x) @ w1) @ w2
    np.testing.assert_allclose(module(jnp.asarray(x)), theirs, atol=1e-5)


@pytest.mark.parametrize("resample, size", [(None, 4), ("up", 8), ("down", 2)])
def test_a_fresh_resnet_block_is_its_shortcut(resample, size):
    block = ResnetBlock(32, 32, temb_channels=8, resample=resample, rngs=nnx.Rngs(0))
    x = jnp.asarray(draw(1, 4, 4, 32))
    moved = {None: lambda x: x, "up": layers.upsample_nearest, "down": layers.downsample_mean}
    np.testing.assert_array_equal(block(x, jnp.ones((1, 8))), moved[resample](x))
    assert block(x, jnp.ones((1, 8))).shape == (1, size, size, 32)


def test_no_gradient_reaches_the_statistics_of_a_fixed_batch_norm():
    network = Network(lambda rngs: layers.FixedBatchNorm(3))
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4, 3))
    gradient = jax.grad(lambda params: jnp.sum(network(params, x) ** 2))(params)
    assert {name for name, value in gradient.items() if np.any(value)} == {"scale", "bias"}
