"""Every test runs on the CPU; a child process that a test starts inherits the same."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning in forked readers

import jax

jax.config.update("jax_platforms", "cpu")  # also where something imported jax first


@pytest.fixture(autouse=True)
def _numpy_seed():
    """A test that draws from numpy's global generator draws the same in any order of tests."""
    import numpy as np

    np.random.seed(0)
