"""Frozen networks of metrics: rows are divided between devices, and results are those of one."""

import sys

import runs

PROGRAM = """
import jax
import numpy as np
from emu_jax.evaluation.frozen import Frozen

shardings = []

def distances(params, x, y):
    found = (x - y) @ params["kernel"]
    jax.debug.inspect_array_sharding(found, callback=shardings.append)
    return {"rows": found, "sums": found.sum(1)}

draw = np.random.default_rng(0)
kernel, x, y = (draw.standard_normal(s).astype(np.float32) for s in ((5, 3), (43, 5), (43, 5)))
found = Frozen(distances, {"kernel": kernel})(x, y)
expected = (x - y) @ kernel
np.testing.assert_allclose(found["rows"], expected, atol=1e-5)
np.testing.assert_allclose(found["sums"], expected.sum(1), atol=1e-5)
assert jax.device_count() == 3
assert all(one.num_devices == 3 and not one.is_fully_replicated for one in shardings)
print(len(shardings), "program")
"""


def test_rows_are_divided_between_devices():
    """43 rows on three devices: neither number divides the other, nor the size of a call."""
    found = runs.run([sys.executable, "-c", PROGRAM], runs.environment(devices=3))
    assert (found.returncode, found.stdout) == (0, "1 program\n"), found.stderr
