"""A generator with CLIP and T5 as a config names them: opened, trained, and what is refused."""

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from emu_jax.assembly.config import read
from emu_jax.assembly.encoders import make_encoders
from emu_jax.assembly.tasks import open_task
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.text.encoder import blank_output
from emu_jax.training.state import with_params
from emu_jax.training.step import make_step

CAPTIONS = ["a red fox", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    encoders.clip_text(folder / "clip")
    encoders.t5(folder / "t5")
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    """The task of a config as a user writes it, in pixel space, and its frozen networks."""
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.codec = dict(kind="identity")
    config.text = dict(
        clip=dict(path=f"{folder}/clip", length=8, layer="penultimate", null="zeros"),
        small=dict(kind="t5", path=f"{folder}/t5", length=6, dtype="bfloat16"),
    )
    config.conditioner.width = 16
    config.denoiser.widths = (8,)
    return open_task(config, make_mesh())


def test_what_a_checkpoint_will_say_of_them(opened, folder):
    task, _ = opened
    assert list(task.encoders) == list(task.frozen) == ["clip", "small"]
    assert task.frozen["small"].source == f"{folder}/t5"
    assert len(task.frozen["clip"].fingerprint) == 64


def test_weights_lie_in_their_dtype(opened):
    _, frozen = opened
    assert {x.dtype for x in frozen["clip"].values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in frozen["small"].values()} == {jnp.dtype("bfloat16")}


def test_null_conditions_are_read_off_the_weights(opened):
    task, frozen = opened
    encoder, null = task.encoders["small"], task.null["small"]
    want = jax.jit(encoder.apply)(frozen["small"], **encoder.tokenize([""]))
    np.testing.assert_array_equal(null.states, want.states)
    np.testing.assert_array_equal(null.mask, [[1, 0, 0, 0, 0, 0]])
    assert np.abs(null.states[0, 0].astype(np.float32)).max() > 0
    assert not task.null["clip"].states.any() and not task.null["clip"].pooled.any()
    assert task.null["clip"].mask.all()


def test_it_trains(opened):
    task, frozen = opened
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8),
        "sizes": np.zeros((2, 6), np.int32),
        "tokens": {name: e.tokenize(CAPTIONS) for name, e in task.encoders.items()},
        "valid": np.ones(2, bool),
    }
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0))
    draw = np.random.default_rng(1)  # no branch of the network starts at zero: the text is felt
    before = {
        path: jnp.asarray(draw.normal(0, 0.1, x.shape), x.dtype) for path, x in shapes.items()
    }
    step = jax.jit(make_step(task, seed=0))
    state, metrics = step(with_params(task, before, {}), frozen, {"train": batch})
    assert metrics["skipped"] == 0
    for name in task.encoders:
        path = f"conditioner/projections/{name}/kernel"
        assert before[path].shape == (24, 16)
        assert np.abs(state["params"][path] - before[path]).max() > 0


def test_an_entry_is_checked(folder):
    def make(**entry):
        return make_encoders(ConfigDict(dict(clip=entry)))["clip"]

    encoder = make(path=f"{folder}/clip", length=8, dtype="bfloat16", pooled=False)
    assert (encoder.length, encoder.dtype, encoder.pooled_width) == (8, "bfloat16", 0)
    blank = blank_output(encoder)
    assert blank.states.dtype == jnp.bfloat16 and blank.states.shape == (1, 8, 24)
    with pytest.raises(UserError, match="kind clip takes no 'lenght'"):
        make(path=f"{folder}/clip", lenght=8)
    with pytest.raises(UserError, match="No kind of text encoder is called 'clop'"):
        make(kind="clop")
