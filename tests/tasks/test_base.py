"""Pixels to floats and back, casting, and which parameters a group takes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emu_jax.errors import UserError
from emu_jax.tasks.base import Group, cast, to_pixels, to_unit_range


def test_every_pixel_value_survives_the_way_to_floats_and_back():
    pixels = np.arange(256, dtype=np.uint8)
    floats = to_unit_range(jnp.asarray(pixels))
    np.testing.assert_allclose(floats, np.linspace(-1, 1, 256), atol=1e-6)
    assert np.array_equal(to_pixels(floats), pixels)
    assert to_pixels(floats).dtype == jnp.uint8


def test_values_outside_are_clipped_and_others_rounded():
    x = jnp.array([-7.0, -1.001, 1.001, 7.0, 0.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5])
    assert to_pixels(x).tolist() == [0, 0, 255, 255, 128, 1, 2]
    assert to_pixels(jnp.array([0.5], jnp.bfloat16)).tolist() == [191]


def test_cast_changes_floats_alone():
    tree = {"w": jnp.ones(2), "ids": jnp.ones(2, jnp.int32), "mask": jnp.ones(2, bool)}
    found = {name: leaf.dtype for name, leaf in cast(tree, jnp.bfloat16).items()}
    assert found == {"w": jnp.bfloat16, "ids": jnp.int32, "mask": jnp.bool_}


def group(pattern):
    return Group(pattern, optax.sgd(1.0), lambda n: 1.0)


def test_a_group_takes_the_paths_that_begin_with_its_pattern():
    params = dict.fromkeys(("denoiser/b", "denoiser/a", "conditioner/denoiser/c", "critic/d"))
    assert group("denoiser/").paths(params) == ["denoiser/a", "denoiser/b"]
    both = ["conditioner/denoiser/c", "denoiser/a", "denoiser/b"]
    assert group("denoiser/|conditioner/").paths(params) == both
    with pytest.raises(UserError, match=r"'decoder/'.*'conditioner/denoiser/c'"):
        group("decoder/").paths(params)
