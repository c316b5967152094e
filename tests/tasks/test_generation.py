"""The generation task with the smallest parts that still read text, sizes, time and latents."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from emu_jax.nn.conditioner import Conditioner, Encoded
from emu_jax.nn.functional import Network
from emu_jax.nn.layers import conv, linear
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.sampler import make_sampler
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.samplers import Ancestral, DPMSolverPP2M
from emu_jax.process.schedules import Cosine
from emu_jax.tasks import generation
from emu_jax.tasks.base import Context, Group, Task, cast, to_unit_range
from emu_jax.tasks.codecs import AutoencoderCodec, IdentityCodec
from emu_jax.tasks.generation import TIME_BINS, Generation
from emu_jax.tasks.sampling import Sampling
from emu_jax.text.encoder import TextEncoder
from emu_jax.training.state import init_state
from emu_jax.training.step import make_step

SIDE, WIDTH, LENGTH, WORDS = 8, 6, 4, 50
KEY = jax.random.key(11)


@dataclass(frozen=True)
class Table(TextEncoder):
    """A vector a word; the text begins with one more, so that the empty one has a state as well."""

    def _tokenize(self, texts):
        ids = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            words = [sum(map(ord, word)) % (WORDS - 2) + 2 for word in text.split()]
            row[: len(words) + 1] = [1, *words]
        return ids, ids > 0

    def apply(self, params, ids, mask):
        states = params["table"][ids]
        return Encoded(states, mask, jnp.tanh(states[:, :2, : self.pooled_width].sum(1)))

    def shapes(self):
        return {"table": jax.ShapeDtypeStruct((WORDS, WIDTH), np.float32)}

    def tensors(self):
        yield "table", np.random.default_rng(1).normal(size=(WORDS, WIDTH)).astype(np.float32)

    @property
    def weights(self):
        return self.folder


class Denoiser(nnx.Module):
    def __init__(self, channels, width, vector, *, rngs):
        self.conv_in = conv(channels, 8, rngs=rngs)
        self.time = linear(1, 8, rngs=rngs)
        self.text = linear(width, 8, rngs=rngs)
        self.vector = linear(vector, 8, rngs=rngs)
        self.conv_out = conv(8, channels, rngs=rngs)

    def __call__(self, x, t, context, mask, vector):
        mask = mask[..., None].astype(x.dtype)
        told = self.time(t[:, None].astype(x.dtype) / 1000) + self.vector(vector)
        told += self.text(jnp.sum(context * mask, 1) / jnp.sum(mask, 1))
        return self.conv_out(jax.nn.silu(self.conv_in(x) + told[:, None, None]))


class Small(nnx.Module):
    """An autoencoder of two convolutions, f = 2."""

    def __init__(self, *, rngs):
        self.conv_in = conv(3, 4, stride=2, rngs=rngs)
        self.conv_out = conv(2, 3, rngs=rngs)

    def encode(self, x):
        return self.conv_in(x)

    def decode(self, z):
        return jnp.repeat(jnp.repeat(self.conv_out(z), 2, 1), 2, 2)


ENCODER = Table("table", Path("none"), LENGTH, WIDTH, pooled_width=2)
LATENT = AutoencoderCodec(Network(lambda rngs: Small(rngs=rngs)), channels=2, factor=2)
CONDITIONER = Network(
    lambda rngs: Conditioner({"table": (WIDTH, 2)}, width=5, size_features=2, rngs=rngs)
)
VECTOR = 2 + 6 * 2


def tokens(texts):
    return {"table": jax.tree.map(jnp.asarray, ENCODER.tokenize(texts))}


def encoded(texts):
    return {"table": ENCODER.apply(FROZEN["table"], **tokens(texts)["table"])}


FROZEN = {
    "table": {path: jnp.asarray(value) for path, value in ENCODER.tensors()},
    "codec": LATENT.network.init(jax.random.key(7))
    | {"latent/shift": jnp.array([0.3, -0.2]), "latent/scale": jnp.array([0.5, 2.0])},
}


def make(codec=LATENT, optimizer=None, **changes):
    group = Group("denoiser/|conditioner/", optimizer or optax.sgd(1e-2), lambda n: 1e-2)
    arguments = dict(
        denoiser=Network(lambda rngs: Denoiser(codec.channels, 5, VECTOR, rngs=rngs)),
        conditioner=CONDITIONER,
        codec=codec,
        process=GaussianProcess(Cosine()),
        encoders={"table": ENCODER},
        null=encoded([""]),
        sampling=Sampling(DPMSolverPP2M(), steps=3, guidance_scale=3.0),
        groups={"generator": group},
        frozen={},
    )
    return Generation(**(arguments | changes))


CAPTIONS = ["a red ball", "blue disc", "one green cat", "dog"]


def rows(texts=CAPTIONS, seed=0):
    draw, n = np.random.default_rng(seed), len(texts)
    return {
        "image": jnp.asarray(draw.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)),
        "sizes": jnp.asarray(draw.integers(0, 9, (n, 6), np.int32)),
        "tokens": tokens(texts),
        "valid": jnp.ones(n, bool),
    }


def cached(rows):
    """The same rows as a cache gives them: moments for pixels, states for tokens."""
    moments = jax.jit(LATENT.moments)(FROZEN["codec"], to_unit_range(rows["image"]))
    text = ENCODER.apply(FROZEN["table"], **rows["tokens"]["table"])
    kept = {name: rows[name] for name in ("sizes", "valid")}
    return {**kept, "moments": moments, "text": {"table": text._asdict()}}


@pytest.fixture(scope="module")
def params():
    return jax.jit(make().init)(jax.random.key(0))[0]


def loss_of(task):
    """``(params, rows)`` -> (loss, gradient), compiled once."""

    @jax.jit
    def run(params, rows):
        def scalar(params):
            batch = {"train": rows}
            return task.loss("generator", Context(params, FROZEN, {}, batch, KEY)).value

        return jax.value_and_grad(scalar)(params)

    return run


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [lambda rows: rows, cached], ids=["online", "cached"])
def test_dropped_rows_get_the_null_condition_and_others_keep_their_text(kept):
    drop = np.array([True, False, True, False])
    (found,) = make().encode(FROZEN, kept(rows()), jnp.asarray(drop)).values()
    (null,), (text,) = encoded([""]).values(), encoded(CAPTIONS).values()
    for ours, nothing, whole in zip(found, null, text, strict=True):
        assert np.any(whole[drop] != nothing)
        assert np.array_equal(ours[drop], np.broadcast_to(nothing, whole[drop].shape))
        assert np.array_equal(ours[~drop], whole[~drop])


def test_a_loss_without_text_does_not_depend_on_captions(params):
    other = rows([*CAPTIONS[:3], "an elephant"])
    assert isinstance(make(), Task)
    for rate, same in ((1.0, True), (0.0, False)):
        loss = loss_of(make(drop_text=rate))
        assert bool(loss(params, rows())[0] == loss(params, other)[0]) is same


def test_text_is_dropped_at_the_given_rate(params, monkeypatch):
    """The rate of the draws that the loss makes, over many rows."""
    n, task = 800, make(drop_text=0.25)
    batch = {"moments": jnp.zeros((n, 1, 1, 4)), "sizes": jnp.zeros((n, 6), jnp.int32)}

    @jax.jit
    def dropped(params):
        seen = []

        def encode(self, frozen, rows, drop):
            seen.append(drop)
            return encoded(["a"] * n)

        monkeypatch.setattr(Generation, "encode", encode)
        task.loss("generator", Context(params, FROZEN, {}, {"train": batch}, KEY))
        return seen[0]

    assert abs(np.mean(dropped(params)) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)


def test_cached_moments_and_text_train_as_pixels_and_tokens_do(params):
    loss = loss_of(make(drop_text=0.5))
    online, slope = loss(params, rows())
    offline, other = loss(params, cached(rows()))
    np.testing.assert_allclose(offline, online, rtol=1e-6)
    for path in params:
        np.testing.assert_allclose(other[path], slope[path], atol=1e-6)
    strangers = {**cached(rows()), "moments": cached(rows(seed=1))["moments"]}
    assert abs(loss(params, strangers)[0] - online) > 1e-3


@pytest.mark.parametrize("codec", [LATENT, IdentityCodec()], ids=["latent", "pixels"])
def test_the_loss_of_a_silent_denoiser_is_the_mean_square_of_v(codec):
    """v = alpha eps - sigma x0, both undone from the example that the process made."""
    task = make(codec)
    params, _ = jax.jit(task.init)(jax.random.key(0))
    for name in ("kernel", "bias"):
        params[f"denoiser/conv_out/{name}"] *= 0
    k_latent, _, k_process = jax.random.split(KEY, 3)
    x0 = to_unit_range(rows()["image"])
    if codec is LATENT:
        moments = LATENT.moments(FROZEN["codec"], x0)
        mean, log_var = np.split(np.asarray(moments), 2, axis=-1)
        z = mean + np.exp(log_var / 2) * jax.random.normal(k_latent, mean.shape)
        x0 = (z - FROZEN["codec"]["latent/shift"]) / FROZEN["codec"]["latent/scale"]
    x, t = task.process.corrupt(k_process, x0)[:2]
    least = np.arctan(np.exp(-10))  # The angle where the log-SNR is bounded, at 20.
    angle = least + (np.pi / 2 - 2 * least) * np.asarray(t)[:, None, None, None]
    eps = (x - np.cos(angle) * x0) / np.sin(angle)
    v = np.cos(angle) * eps - np.sin(angle) * x0
    value, slope = loss_of(task)(params, rows())
    np.testing.assert_allclose(value, np.mean(v**2), rtol=1e-3)
    assert np.any(slope["denoiser/conv_out/bias"] != 0)


def test_bf16_compute_keeps_fp32_masters_that_small_updates_move(params):
    half = make(optimizer=optax.adam(1e-5), compute_dtype=jnp.bfloat16)
    value, slope = loss_of(half)(params, rows())
    whole, _ = loss_of(make())(params, rows())
    assert 1e-6 < abs(value - whole) < 0.05 * whole, "computed in bf16, and well"
    assert all(g.dtype == jnp.float32 and np.all(np.isfinite(g)) for g in slope.values())

    state = jax.jit(lambda k: init_state(half, k))(jax.random.key(0))
    before = state["params"]
    after, metrics = jax.jit(make_step(half, seed=0))(state, FROZEN, {"train": rows()})
    assert metrics["skipped"] == 0
    kernel = "denoiser/conv_in/kernel"
    moved = after["params"][kernel] - before[kernel]
    assert after["params"][kernel].dtype == jnp.float32
    np.testing.assert_allclose(np.abs(moved), 1e-5, rtol=0.1)
    # The same update on a bf16 weight is mostly lost.
    rounded = before[kernel].astype(jnp.bfloat16)
    assert np.mean(rounded + moved.astype(jnp.bfloat16) == rounded) > 0.9


# Validation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validate():
    return jax.jit(
        lambda params, rows: make().validate(Context(params, FROZEN, {}, {"train": rows}, KEY))
    )


def test_validations_bins_share_out_the_rows(params, validate):
    found = validate(params, rows(["a"] * 10))
    bins = [found.pop(f"loss_bin{i}") for i in range(TIME_BINS)]
    assert found.keys() == {"loss"} and [int(count) for _, count in bins] == [2] * TIME_BINS
    np.testing.assert_allclose(sum(s for s, _ in bins), found["loss"][0], rtol=1e-5)
    assert found["loss"][1] == 10


def test_the_first_bin_is_the_clean_end():
    """Of a grey picture v is alpha eps: its mean square falls from 1 to 0 as t rises."""
    task = make(IdentityCodec())
    params, _ = jax.jit(task.init)(jax.random.key(0))
    for name in ("kernel", "bias"):
        params[f"denoiser/conv_out/{name}"] *= 0
    grey = {**rows(["a"] * 10), "image": jnp.full((10, SIDE, SIDE, 3), 127, jnp.uint8)}
    found = jax.jit(lambda p: task.validate(Context(p, FROZEN, {}, {"train": grey}, KEY)))(params)
    for i in range(TIME_BINS):
        total, count = found[f"loss_bin{i}"]
        alpha = np.cos(np.pi / 2 * (np.array([2 * i, 2 * i + 1]) + 0.5) / 10)
        np.testing.assert_allclose(total / count, np.mean(alpha**2), rtol=0.2, atol=0.01)


def test_padded_rows_do_not_count(params, validate):
    valid = jnp.arange(10) < 7
    batch = {**rows(["a"] * 10), "valid": valid}
    noise = rows(["b c"] * 10, seed=5)
    mixed = {
        **jax.tree.map(
            lambda a, b: jnp.where(valid.reshape(-1, *(1,) * (a.ndim - 1)), a, b), batch, noise
        ),
        "valid": valid,
    }
    ours, theirs = validate(params, batch), validate(params, mixed)
    assert ours["loss"][1] == 7 and sum(ours[f"loss_bin{i}"][1] for i in range(TIME_BINS)) == 7
    for name, (total, count) in ours.items():
        np.testing.assert_allclose(theirs[name], (total, count), rtol=1e-6)
    assert validate(params, noise)["loss"][0] != ours["loss"][0]


# Sampling ----------------------------------------------------------------------------------------


def test_previews_are_the_first_captions_pictures(params):
    task = make(previews=2)
    preview = jax.jit(lambda rows: task.preview(Context(params, FROZEN, {}, {"train": rows}, KEY)))
    (images,) = preview(rows()).values()
    assert images.shape == (2, SIDE, SIDE, 3) and images.dtype == jnp.uint8
    assert np.array_equal(preview(rows(seed=0))["samples"], images)
    assert not np.array_equal(preview(rows(CAPTIONS[::-1]))["samples"], images)


@pytest.fixture(scope="module")
def draw(params):
    """``draw(texts, seeds, ...)``: pictures as floats, before they are rounded to pixels."""

    @cache
    def sampler(guidance_scale):
        task = make()
        how = Sampling(Ancestral(), steps=3, guidance_scale=guidance_scale)

        @jax.jit
        def run(text, negative, keys):
            sizes = jnp.full((len(keys), 6), 8, jnp.int32)
            return task.generate(
                params, FROZEN, text, sizes, keys, (4, 4), negative=negative, sampling=how
            )

        return run

    def draw(texts, seeds, negative=None, guidance_scale=3.0):
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        against = None if negative is None else encoded(negative)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation, "to_pixels", lambda x: x)
            return np.asarray(sampler(guidance_scale)(encoded(texts), against, keys))

    return draw


def test_a_picture_depends_on_its_own_key_and_prompt_alone(draw):
    batch = draw(CAPTIONS[:3], [4, 5, 6])
    assert batch.shape == (3, SIDE, SIDE, 3)
    alone = draw(CAPTIONS[1:2], [5])
    np.testing.assert_allclose(batch[1], alone[0], atol=1e-5)
    for texts, seed in ((CAPTIONS[1:2], 6), (CAPTIONS[2:3], 5)):
        assert np.max(np.abs(draw(texts, [seed]) - alone)) > 1e-2


def test_a_negative_prompt_is_what_guidance_leads_away_from(draw):
    text, other, seed = CAPTIONS[:1], CAPTIONS[2:3], [3]
    plain = draw(text, seed, guidance_scale=1.0)
    np.testing.assert_allclose(draw(text, seed, other, guidance_scale=1.0), plain, atol=1e-5)
    # Away from the prompt itself leads nowhere; away from nothing is the default.
    np.testing.assert_allclose(draw(text, seed, text), plain, atol=1e-5)
    default = draw(text, seed)
    np.testing.assert_allclose(draw(text, seed, [""]), default, atol=1e-5)
    assert np.max(np.abs(draw(text, seed, other) - default)) > 1e-3
    assert np.max(np.abs(default - plain)) > 1e-3


def test_parameters_held_in_the_compute_dtype_draw_the_same(params):
    task = make(compute_dtype=jnp.bfloat16)
    held = cast(params, task.sampling_dtype)
    assert {x.dtype for x in held.values()} == {jnp.dtype(jnp.bfloat16)}
    keys = jax.vmap(jax.random.key)(jnp.arange(2))

    @jax.jit
    def run(params):
        sizes = jnp.full((2, 6), 8, jnp.int32)
        return task.generate(params, FROZEN, encoded(CAPTIONS[:2]), sizes, keys, (4, 4))

    assert np.array_equal(run(params), run(held))


def test_the_sampler_that_is_planned_and_timed_draws_the_same_from_tokens_and_states(params):
    task, mesh = make(), make_mesh()
    texts = (CAPTIONS * mesh.size)[: mesh.size]
    seeds, states = np.arange(mesh.size, dtype=np.uint32), encoded(texts)
    ids = {"table": tuple(ENCODER.tokenize(texts)[key] for key in ("ids", "mask"))}
    given = {True: {name: tuple(x) for name, x in states.items()}, False: ids}
    sizes = jnp.tile(jnp.array([SIDE, SIDE, 0, 0, SIDE, SIDE]), (mesh.size, 1))
    keys = jax.vmap(jax.random.key)(seeds)
    wanted = task.generate(params, FROZEN, states, sizes, keys, (SIDE // 2, SIDE // 2))
    assert np.std(np.asarray(wanted)) > 5
    for from_states, text in given.items():
        draw, frozen, rows, images = make_sampler(task, mesh, SIDE, 1, from_states)
        batch = {"text": text, "seed": seeds}
        assert images == mesh.size and set(frozen) >= {"codec"}
        assert jax.tree.map(jnp.shape, batch) == jax.tree.map(jnp.shape, rows)
        drawn = jax.jit(draw)(
            params, {name: FROZEN[name] for name in frozen if name in FROZEN}, batch
        )
        assert drawn.dtype == jnp.uint8
        assert np.max(np.abs(np.asarray(drawn, int) - np.asarray(wanted, int))) <= 1
