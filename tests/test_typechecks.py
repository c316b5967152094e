"""That the tests check array annotations at all."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from emu_jax.process.guidance import guide


def test_a_wrong_shape_or_dtype_is_an_error():
    x = jnp.zeros((2, 3))
    guide(x, x, 1.0)
    for wrong in (jnp.zeros((2, 4)), jnp.zeros((3, 3)), jnp.zeros((2, 3), jnp.int32)):
        with pytest.raises(TypeCheckError, match="uncond"):
            guide(x, wrong, 1.0)
