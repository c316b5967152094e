"""Networks in overlapping tiles against the same networks on whole maps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.assembly.codecs import make_autoencoder_codec
from emu_jax.tasks.tiling import tiled


def enlarge(x):
    return jnp.repeat(jnp.repeat(jnp.sin(x), 2, 1), 2, 2)


def halve(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


@pytest.mark.parametrize("shape", [(11, 23), (8, 9), (30, 5), (8, 8)])
def test_a_function_of_single_positions_is_the_same_in_tiles(shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    np.testing.assert_allclose(tiled(enlarge, x, 8, 1, 2), enlarge(x), atol=1e-6)
    fine = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    np.testing.assert_allclose(tiled(halve, fine, 8, 2, 1), halve(fine), atol=1e-6)


def test_what_differs_between_tiles_changes_gradually():
    """A tile that answers its own mean: neighbors differ by a small part of the whole range."""
    x = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None], (1, 16, 64, 1))
    found = np.asarray(tiled(lambda x: jnp.full_like(x, x.mean()), x, 16, 1, 1))[0, 0, :, 0]
    assert np.ptp(found) > 40 and np.abs(np.diff(found)).max() < 0.3 * 12  # 12 between tiles


def test_an_autoencoder_in_tiles_leaves_no_seam():
    """The shipped one decodes a drawing that is larger than itself, whole and in its own size."""
    codec, frozen = make_autoencoder_codec("codec", path="builtin:autoencoder_64")
    params = {name: jnp.asarray(x) for name, x in frozen["codec"].tensors()}
    y, x = np.mgrid[:96, :96] / 96
    image = np.ones((1, 96, 96, 3), np.float32)
    for row, column, color in ((0.4, 0.4, (0.6, -0.8, -0.8)), (0.6, 0.7, (-0.9, 0.1, 0.8))):
        image[0, (x - column) ** 2 + (y - row) ** 2 < 0.06] = color
    encode = jax.jit(lambda p, x: codec.sample(p, codec.moments(p, x), jax.random.key(0)))
    z = encode(params, image)
    whole, tiles = (
        np.asarray(jax.jit(replace(codec, tile=tile).decode)(params, z))[0] for tile in (0, 64)
    )
    assert np.abs(whole - image[0]).mean() < 0.1  # it does reconstruct
    assert np.abs(tiles - whole).mean() < 0.03  # of 2: norms see a tile only
    # Tiles begin and end at 32 and 64: steps there are larger by less than one level of 255.
    for axis in (0, 1):
        extra = np.abs(np.diff(tiles, axis=axis)) - np.abs(np.diff(whole, axis=axis))
        assert np.take(extra, (31, 63), axis).mean() < extra.mean() + 1 / 127.5
