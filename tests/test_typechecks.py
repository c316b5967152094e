"""That the tests check array annotations at all."""

from pathlib import Path

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from typechecks import ROOMS

from emu_jax.nn.layers import downsample_mean
from emu_jax.process.guidance import guide


def test_a_wrong_shape_or_dtype_is_an_error():
    x = jnp.zeros((2, 3))
    guide(x, x, 1.0)
    for wrong in (jnp.zeros((2, 4)), jnp.zeros((3, 3)), jnp.zeros((2, 3), jnp.int32)):
        with pytest.raises(TypeCheckError, match="uncond"):
            guide(x, wrong, 1.0)
    with pytest.raises(TypeCheckError, match="downsample_mean"):
        downsample_mean(jnp.zeros((4, 4, 3)))


def test_every_room_with_array_annotations_is_checked():
    package = Path(__file__).parents[1] / "emu_jax"
    annotated = {
        path.relative_to(package).parts[0]
        for path in package.glob("*/**/*.py")
        if "jaxtyping" in path.read_text()
    }
    assert annotated == set(ROOMS)
