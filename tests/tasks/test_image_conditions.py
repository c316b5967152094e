"""Images beside the text: what they add to the conditions, and the losses of their models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.initial import _CONV_IN, _widened
from emu_jax.assembly.streams import stream_specs
from emu_jax.assembly.tasks import make_task
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.inputs import abstract_frozen, training_batch
from emu_jax.tasks.base import Context
from emu_jax.tasks.codecs import IdentityCodec
from emu_jax.tasks.image_conditions import Editing, Inpainting, blank, dropped, require_images

IMAGE = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def test_inpainting_shows_the_mask_and_the_rest():
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, 1, 2], mask[1] = 1, 255
    images = dict(image=jnp.asarray(IMAGE), mask=jnp.asarray(mask))
    found = np.asarray(Inpainting().conditions(IdentityCodec(), {}, images)["spatial"])
    assert found.shape == (2, 4, 4, Inpainting().channels(3))
    np.testing.assert_array_equal(found[..., 0], mask > 0)
    kept = np.where(mask[..., None] > 0, 0, IMAGE / 127.5 - 1)
    np.testing.assert_allclose(found[..., 1:], kept, atol=1e-6)


def test_editing_drops_some_rows_and_others_keep_their_image():
    images = dict(before=jnp.tile(IMAGE[:1], (200, 1, 1, 1)))
    whole = Editing(0.3).conditions(IdentityCodec(), {}, images)
    found = dropped(Editing(0.3), jax.random.key(0), whole)["spatial"]
    empty = np.all(found == 0, axis=(1, 2, 3))
    assert 0.2 < empty.mean() < 0.4
    np.testing.assert_array_equal(found[~empty], whole["spatial"][~empty])
    for other in (Editing(0.0), Inpainting()):
        assert dropped(other, jax.random.key(0), whole) is whole


def test_images_that_are_missing_or_unknown_are_said():
    require_images(("canny",), blank(("canny",), 1, 4, 4))
    with pytest.raises(UserError, match="conditioned on the image 'mask'"):
        require_images(("image", "mask"), {"image": IMAGE})
    with pytest.raises(UserError, match="takes no image 'before'; it takes none"):
        require_images((), {"before": IMAGE})


@pytest.mark.parametrize("kind", ["inpainting", "editing"])
def test_a_config_with_such_an_image_has_a_loss(kind):
    """With latents from a cache too: the pixels are a further image then."""
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.spatial.kind, config.data.image_size, config.train.batch_size = kind, 16, 2
    task, mesh = make_task(config).prepare(None), make_mesh(devices=jax.devices()[:1])
    frozen = abstract_frozen(task, mesh)
    for cached in (False, True):
        specs = stream_specs(config, task)
        batch = training_batch(task, specs, frozen, mesh, cached_latents=cached, cached_text=True)
        params, _ = jax.eval_shape(task.init, jax.random.key(0))

        def loss(params, frozen, batch):
            context = Context(params, frozen, {}, batch, jax.random.key(0))
            return task.loss("generator", context).value

        slope = jax.eval_shape(jax.grad(loss), params, frozen, batch)
        channels = 33 if kind == "inpainting" else 32
        assert slope[_CONV_IN].shape == (3, 3, channels, 8)


def test_a_model_without_the_image_starts_with_zeros_for_it():
    source = {_CONV_IN: np.ones((3, 3, 4, 8), np.float32), "other": np.ones(2)}
    shape = lambda *size: jax.ShapeDtypeStruct(size, np.float32)  # noqa: E731
    found = _widened(source, {_CONV_IN: shape(3, 3, 9, 8)})
    assert found[_CONV_IN].shape == (3, 3, 9, 8) and found["other"] is source["other"]
    np.testing.assert_array_equal(found[_CONV_IN][:, :, :4], 1)
    np.testing.assert_array_equal(found[_CONV_IN][:, :, 4:], 0)
    assert _widened(source, {_CONV_IN: shape(3, 3, 4, 8)}) is source


def test_what_does_not_fit_is_said():
    for options, changes, words in (
        ("latent_diffusion.py:size=test,denoiser=transformer", dict(hint="canny"), "of kind unet"),
        ("latent_diffusion.py:size=test", dict(hint="canny", hint_widths=(4, 4)), "use 4 entries"),
        ("masked.py:size=test", dict(kind="editing"), "tokens have no channels"),
    ):
        config = read(f"{runs.ROOT}/configs/{options}")
        config.init_from = "x"
        (config.spatial if "kind" in changes else config.control).update(changes)
        with pytest.raises(UserError, match=words):
            make_task(config)
