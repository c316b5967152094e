"""From config sections to parts: what is built, and what is refused."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from emu_jax.assembly.codecs import make_codec
from emu_jax.assembly.config import read
from emu_jax.assembly.generation import make_process
from emu_jax.assembly.groups import make_groups
from emu_jax.assembly.streams import stream_spec, stream_specs
from emu_jax.assembly.tasks import make_task, place_frozen
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.inputs import abstract_frozen, training_batch
from emu_jax.process.registry import SCHEDULES
from emu_jax.process.schedules import Discrete
from emu_jax.tasks.base import Frozen
from emu_jax.text.encoder import make_encoder, null_output


@pytest.fixture
def autoencoder():
    return read(f"{runs.ROOT}/configs/autoencoder.py:size=test")


@pytest.fixture
def generator(autoencoder_run):
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.codec.path = str(autoencoder_run)
    return config


def test_every_parameter_of_a_task_is_in_a_group(autoencoder, generator):
    for config in (autoencoder, generator):
        task = make_task(config)
        params, _ = jax.eval_shape(task.init, jax.random.key(0))
        grouped = [path for group in task.groups.values() for path in group.paths(params)]
        assert sorted(grouped) == sorted(params)


def test_without_a_discriminator_its_group_goes_too(autoencoder):
    autoencoder.discriminator.enabled = False
    assert list(make_task(autoencoder).groups) == ["autoencoder"]


def test_self_attention_guidance_is_for_denoisers_that_return_their_attention(generator):
    generator.sampling.sag_scale = 0.75
    task = make_task(generator).prepare(None)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))

    def calls(scale):
        conditions = task.null_rows(2)
        sampling = dataclasses.replace(task.sampling, sag_scale=scale)

        def denoise(params, sizes, x, t):
            found = task.condition(params, conditions, sizes)
            return task.guided(params, found, found, sampling)(x, t)

        x = np.zeros((2, *task.codec.row(2, 2)), np.float32)
        return jax.make_jaxpr(denoise)(params, np.zeros((2, 6), np.int32), x, np.ones(2))

    plain, more = calls(0.0), calls(0.75)
    assert [x.aval.shape for x in more.jaxpr.outvars] == [x.aval.shape for x in plain.jaxpr.outvars]
    assert 1.8 < len(str(more)) / len(str(plain)) < 2.5  # one more call of the network
    sizes = dict(width=64, depth=1, heads=2, patch=1, mlp_width=64)
    generator.denoiser = ConfigDict(dict(kind="transformer", **sizes))
    with pytest.raises(UserError, match="kind transformer returns no attention: set it to 0, or"):
        make_task(generator)


def test_a_groups_schedule_ends_with_the_run(autoencoder):
    """Cosine down to ``final`` of the rate, counted in the group's own updates."""
    autoencoder.groups.autoencoder.update(dict(first_step=2, every=2))
    autoencoder.train.steps = 42  # 20 updates
    schedule = make_groups(autoencoder)["autoencoder"].learning_rate
    assert float(schedule(20)) == pytest.approx(0.02 * 1e-3)
    assert float(schedule(10)) > 0.3e-3


def test_the_codec_is_the_run_with_its_measured_latents(autoencoder_run, generator):
    codec, frozen = make_codec(generator.codec)
    assert (codec.channels, codec.factor) == (16, 8)
    tensors = dict(frozen["codec"].tensors())
    assert not any(path.startswith("discriminator/") for path in tensors)
    saved = runs.arrays(autoencoder_run)
    np.testing.assert_array_equal(tensors["latent/shift"], saved["state/latent/shift"])
    params = {path: jnp.asarray(value) for path, value in tensors.items()}
    shift, scale = params["latent/shift"], params["latent/scale"]
    moments = codec.moments(params, jnp.zeros((1, 16, 16, 3)))
    wide = jnp.full((1, 2, 2, 16), -30.0)  # log variance: no noise to speak of
    certain = jnp.concatenate([moments[..., :16], wide], -1)
    z = codec.sample(params, certain, jax.random.key(0))
    np.testing.assert_allclose(z, (moments[..., :16] - shift) / scale, atol=1e-4)
    assert codec.decode(params, z).shape == (1, 16, 16, 3)


def test_pixels_need_no_codec():
    codec, frozen = make_codec(ConfigDict(dict(kind="identity")))
    assert (codec.channels, codec.factor, frozen) == (3, 1, {})


def test_the_weights_of_a_frozen_network_are_read_once():
    read = []

    def tensors():
        read.append("all")
        yield "a/kernel", np.ones((2, 3), np.float32)

    shapes = {"a/kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}
    task = SimpleNamespace(frozen={"a": Frozen("weights/a", "abc", shapes, tensors, "bfloat16")})
    placed = place_frozen(task, make_mesh())["a"]["a/kernel"]
    assert placed.shape == (2, 3) and placed.dtype == jnp.bfloat16 and read == ["all"]


def test_the_null_condition_follows_the_encoders_policy():
    encoder = make_encoder("minilm", 4)
    params = {path: jnp.asarray(value) for path, value in encoder.tensors()}
    empty = null_output(encoder, params)
    want = encoder.apply(params, **encoder.tokenize([""]))
    np.testing.assert_allclose(empty.states, want.states, atol=1e-5)
    np.testing.assert_array_equal(empty.mask, want.mask)
    zeros = null_output(dataclasses.replace(encoder, null="zeros"), {})
    assert zeros.states.shape == empty.states.shape and zeros.pooled.shape == empty.pooled.shape
    assert not zeros.states.any()
    assert zeros.mask.all()


def size_of(shapes):
    return sum(math.prod(shape.shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("size", "parameters", "texts"),
    [
        # 16 channels in and out, not 4; the two CLIPs of SDXL's pipeline.
        ("sdxl", 2_567_463_684 + 12 * (2 * 9 * 320 + 1), 123_650_304 + 694_659_840),
        ("emu", pytest.approx(2.8e9, rel=0.01), 123_650_304 + 4_762_310_656),
    ],
)
def test_the_large_sizes_by_shape_alone(size, parameters, texts):
    task = make_task(read(f"{runs.ROOT}/configs/latent_diffusion.py:size={size}"))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert size_of(params) == parameters
    assert sum(size_of(task.frozen[name].shapes) for name in task.encoders) == texts
    assert (task.codec.channels, task.codec.factor) == (16, 8)
    # Without weights no run is begun: the first thing that it asks for is refused.
    encoder = next(iter(task.encoders))
    for network, words in ((encoder, rf"config\.text\.{encoder}\.path"), ("codec", r"codec\.path")):
        with pytest.raises(UserError, match=words) as refused:
            next(task.frozen[network].tensors())
        assert "enough to plan a step, not to run one" in str(refused.value)


def test_the_stages_of_the_large_sizes_follow_one_another():
    stages = ["resolution=256", "resolution=512", "resolution=1024", "stage=quality_tune"]
    configs = [read(f"{runs.ROOT}/configs/latent_diffusion.py:size=emu,{s}") for s in stages]
    assert [c.init_from for c in configs] == ["", *(f"runs/emu_{n}" for n in (256, 512, 1024))]
    assert [c.data.image_size for c in configs] == [256, 512, 1024, 1024]
    assert [c.process.noise_offset for c in configs] == [0.0, 0.0, 0.02, 0.1]
    with pytest.raises(UserError, match="resolution=256 is only available for size=sdxl"):
        read(f"{runs.ROOT}/configs/latent_diffusion.py:size=tiny,resolution=256")
    assert configs[-1].train.batch_size == 64 and configs[-1].train.steps <= 15_000


def test_muses_base_model_by_shape_alone():
    """Counted in closed form by its network's own test, and the projection of T5-XXL's states."""
    task = make_task(read(f"{runs.ROOT}/configs/masked.py:size=base"))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    count = sum(math.prod(shape.shape) for shape in params.values())
    assert count == pytest.approx(3.26e9 + 4097 * 2048, rel=0.01)
    assert task.process.mask == 8192 and task.codec.factor == 16
    with pytest.raises(UserError, match=r"codec\.path .*enough to plan a step, not to run"):
        next(task.frozen["codec"].tensors())


def test_muses_second_model_by_shape_alone():
    """Its network's own test has the count; here are the text's projection and what feeds it."""
    config = read(f"{runs.ROOT}/configs/masked.py:size=base,part=super")
    task, mesh = make_task(config), make_mesh()
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert size_of(params) == 764_129_280 + 4097 * 1024
    frozen = abstract_frozen(task, mesh, ("t5",))
    batch = training_batch(task, stream_specs(config, task), frozen, mesh, cached_latents=True)
    rows = {name: batch["train"][name].shape for name in ("moments", "low")}
    assert rows == {"moments": (512, 64, 64), "low": (512, 16, 16)}
    with pytest.raises(UserError, match=r"low_codec\.path .*enough to plan a step, not to run"):
        next(task.frozen["low_codec"].tensors())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task", "drawing", "config.task is 'drawing'; use one of generation, autoencoding"),
        ("codec.kind", "wavelet", "codec.kind is 'wavelet'; use one of autoencoder, identity"),
        ("codec.path", "builtin:nothing", "No weights called builtin:nothing"),
        ("denoiser.kind", "mlp", "denoiser.kind is 'mlp'; use one of unet"),
        ("denoiser.kind", "uvit", "denoiser.kind is 'uvit'; use one of unet"),
        ("process.schedule", "sine", "process.schedule is 'sine'; use one of cosine"),
        ("sampling.sampler", "eluer", "sampling.sampler is 'eluer'"),
        ("groups.generator.optimizer.name", "sgd", "optimizer.name is 'sgd'; use one of adamw"),
    ],
)
def test_a_value_that_is_not_known_is_named(key, value, words, generator):
    generator.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        make_task(generator)


def test_a_key_that_a_network_does_not_take_is_named(generator):
    with generator.unlocked():
        generator.denoiser.depth = 3
    with pytest.raises(UserError, match=r"UNet: .*depth"):
        make_task(generator)


def test_the_stream_follows_the_data_section(autoencoder):
    autoencoder.data.random_crop = True
    autoencoder.data.background = (1, 2, 3)
    spec = stream_spec(autoencoder, flip=False)
    assert (spec.batch_size, spec.side, spec.crop) == (8, 64, "random")
    assert (spec.background, spec.flip) == ((1, 2, 3), False)


def test_a_schedule_can_be_shifted():
    section = dict(schedule="flow", prediction="flow", shift=3.0, bounds=[0.01, 1.0])
    codec = make_codec(ConfigDict(dict(kind="identity")))[0]
    process = make_process(ConfigDict(section), codec)
    assert process.bounds == (0.01, 1.0)
    assert float(process.schedule.sigma(jnp.float32(0.5))) == pytest.approx(0.75)
    plain = make_process(ConfigDict(section | dict(shift=1.0)), codec)
    assert float(plain.schedule.sigma(jnp.float32(0.5))) == 0.5


def test_the_linear_schedule_is_ddpms():
    """Betas from 1e-4 to 0.02, and not Stable Diffusion's ends."""
    schedule = SCHEDULES["linear"]()
    assert isinstance(schedule, Discrete)
    betas = schedule.betas()
    assert (betas[0], betas[-1]) == pytest.approx((1e-4, 0.02))
