"""An autoencoder's loss and state with a codebook, on the smallest network that has both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network, subtree
from emu_jax.nn.layers import linear
from emu_jax.tasks.autoencoding import Autoencoding
from emu_jax.tasks.base import Context, Group, Task, to_unit_range
from emu_jax.tasks.bottlenecks import Quantizer
from emu_jax.tasks.codecs import TokenCodec, codec_params

KEY, CODES = jax.random.key(5), 6


class Pixels(nnx.Module):
    """Every pixel is a latent: f = 1."""

    def __init__(self, *, rngs):
        self.to_latent = linear(3, 2, rngs=rngs)
        self.to_pixel = linear(2, 3, rngs=rngs)

    def encode(self, x):
        return self.to_latent(x)

    def decode(self, z):
        return self.to_pixel(z)


NETWORK = Network(lambda rngs: Pixels(rngs=rngs))


def make(**changes):
    groups = {"autoencoder": Group("autoencoder/", optax.sgd(1e-2), lambda n: 1e-2)}
    quantizer = Quantizer(2, CODES, commitment=0.5, **changes)
    return Autoencoding(
        autoencoder=NETWORK,
        discriminator=None,
        lpips=None,
        latent_channels=2,
        groups=groups,
        frozen={},
        quantizer=quantizer,
    )


def rows():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    return {"image": jnp.asarray(image), "valid": jnp.ones(2, bool)}


@pytest.fixture(scope="module")
def start():
    """(parameters, state) whose codes lie among the latents."""
    params, state = jax.jit(make().init)(jax.random.key(0))
    return params, state | {"codebook/count": jnp.full(CODES, 5.0)}


def latents(params):
    x = np.asarray(to_unit_range(rows()["image"]), np.float64)
    kernel, bias = (np.asarray(params[f"autoencoder/to_latent/{k}"]) for k in ("kernel", "bias"))
    return x, x @ kernel + bias


def quantised(params, state):
    """(pictures, latents, the codes next to them)."""
    x, z = latents(params)
    e = np.asarray(state["codebook/embedding"])
    ids = np.argmin(((z[..., None, :] - e) ** 2).sum(-1), -1)
    return x, z, e[ids]


@jax.jit
def _loss(params, state):
    return make().loss("autoencoder", Context(params, {}, state, {"train": rows()}, KEY))


def test_the_loss_is_l1_and_the_weighed_commitment(start):
    params, state = start
    x, z, code = quantised(params, state)
    value, after, metrics, _ = _loss(params, state)
    kernel, bias = (np.asarray(params[f"autoencoder/to_pixel/{k}"]) for k in ("kernel", "bias"))
    fake = code @ kernel + bias
    np.testing.assert_allclose(metrics["l1"], np.abs(fake - x).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["commitment"], np.mean((z - code) ** 2), rtol=1e-4)
    np.testing.assert_allclose(value, metrics["l1"] + 0.5 * metrics["commitment"], rtol=1e-5)
    assert metrics["perplexity"] > 1 and "kl" not in metrics
    assert isinstance(make(), Task) and after.keys() == state.keys()
    assert not np.array_equal(after["codebook/embedding"], state["codebook/embedding"])


def test_a_frozen_codebook_stays_and_says_so(start):
    params, state = start
    task, batch = make(frozen=True), {"train": rows()}

    @jax.jit
    def loss(params, state):
        return task.loss("autoencoder", Context(params, {}, state, batch, KEY))

    _, after, metrics, _ = loss(params, state)
    assert "revived" not in metrics and after.keys() == state.keys()
    assert all(np.array_equal(after[path], state[path]) for path in state)
    assert make().finish(Context(params, {}, state, {}, KEY), iter(())) is state


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"dead": 0.0}, r"quantizer\.dead is 0\.0; use a value above 0"),
        ({"decay": 1.0}, r"quantizer\.decay is 1\.0; use a value of at least 0 and below 1"),
    ],
)
def test_settings_that_would_lose_codes_are_refused(bad, words):
    with pytest.raises(UserError, match=words):
        Quantizer(2, CODES, **bad)


def test_the_codec_reads_the_numbers_of_the_nearest_codes(start):
    params, state = start
    x, _, code = quantised(params, state)
    codec, model = TokenCodec(NETWORK, CODES, 2, 1), {**params, **state}
    frozen = codec_params(model)
    shapes = codec.shapes()
    assert {path: x.shape for path, x in shapes.items()} == {k: v.shape for k, v in frozen.items()}
    assert frozen.keys() == {*subtree(params, "autoencoder"), "codebook/embedding"}
    task = make()

    @jax.jit
    def both(x):
        tokens = codec.sample(frozen, codec.moments(frozen, x), KEY)
        return tokens, codec.decode(frozen, tokens), task.reconstruct(params, x, state)

    tokens, decoded, settled = both(np.float32(x))
    assert tokens.shape == (2, *codec.row(4, 4)) and jnp.issubdtype(tokens.dtype, jnp.integer)
    np.testing.assert_allclose(np.asarray(state["codebook/embedding"])[tokens], code, rtol=1e-6)
    np.testing.assert_allclose(decoded, settled, atol=1e-6)
