"""Models that are read into shards: on eight devices, in a process of its own."""

import sys

import runs

PROGRAM = """
import sys
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.manager import Checkpoints
from emu_jax.checkpoint.opened import open_model

draw = np.random.default_rng(0)
kernel, bias = draw.normal(size=(3, 16)).astype("f"), np.arange(5, dtype="f")
count = np.arange(16, dtype="i4")
params = {"net/kernel": kernel.astype(jnp.bfloat16), "net/bias": bias, "count": count}
save_model(f"{sys.argv[1]}/exported", params, {}, {}, dtype=None)
with Checkpoints(f"{sys.argv[1]}/run/checkpoints") as checkpoints:
    state = {"params": params, "ema": {"net/kernel": params["net/kernel"] * 2}, "state": {}}
    checkpoints.save(1, state, {"config": {}}, None)

mesh = Mesh(jax.devices(), "x")
lie = {
    "net/kernel": NamedSharding(mesh, P(None, "x")),
    "net/bias": NamedSharding(mesh, P()),
    "count": NamedSharding(mesh, P("x")),
}
for name in ("exported", "run", "run@1-raw"):
    place = f"{sys.argv[1]}/{name}"
    model, whole = open_model(place), load_model(place, dtype=np.float32).params
    assert {path: x.shape for path, x in model.shapes.items()} == {
        path: x.shape for path, x in whole.items()
    }
    for path, x in model.place(lie, np.float32).items():
        assert x.sharding == lie[path] and x.dtype == whole[path].dtype, (name, path, x.dtype)
        assert np.array_equal(x, whole[path]), (name, path)
    twice = np.asarray(whole["net/kernel"]) == 2 * np.asarray(params["net/kernel"], "f")
    assert twice.all() == (name == "run"), name
print("all read")
"""


def test_arrays_come_into_their_shards_from_either_kind_of_folder(tmp_path):
    env = runs.environment(8)
    result = runs.run([sys.executable, "-c", PROGRAM, str(tmp_path)], env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("all read\n")
