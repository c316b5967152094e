"""What only an NVIDIA GPU can show; left out on machines without one.

python -m pytest tests/test_gpu.py
"""

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import runs

pytestmark = [
    pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs an NVIDIA GPU"),
    pytest.mark.optimized,  # kernels and compiler are what is tested
]

CUDNN = """
    from functools import partial
    import jax, jax.numpy as jnp, numpy as np
    from emu_jax.nn.attention import attend
    from emu_jax.parallel.attention import make_attend
    from emu_jax.parallel.mesh import make_mesh
    assert jax.devices()[0].platform == "gpu", jax.devices()
    kernel = make_attend("cudnn", make_mesh())
    rng = np.random.default_rng(0)
    for n, m, width, masked in ((1024, 1024, 64, False), (2048, 1024, 40, False),
                                (1024, 2048, 128, True), (4096, 77, 64, True),
                                (1024, 77, 64, False)):
        q, k, v, weight = (jnp.asarray(rng.normal(size=(2, t, 4, width)), jnp.bfloat16)
                           for t in (n, m, m, n))
        keys = jnp.arange(m) < jnp.array([[m], [m // 2]]) if masked else None
        mask = None if keys is None else keys[:, None, None]
        def loss(f, q, k, v):
            return jnp.sum(f(q, k, v, mask).astype("float32") * weight.astype("float32"))
        ran = jax.jit(partial(loss, kernel)).lower(q, k, v).compile().as_text()
        assert "cudnn" in ran and "fmha" in ran, ran
        def both(f, *x):
            return f(*x, mask), *jax.grad(partial(loss, f), (0, 1, 2))(*x)
        with jax.default_matmul_precision("highest"):
            exact = [x.astype("float32") for x in (q, k, v)]
            wanted = jax.jit(partial(both, attend))(*exact)
        plain, found = (jax.jit(partial(both, f))(q, k, v) for f in (attend, kernel))
        for name, exact, ours, theirs in zip("oqkv", wanted, found, plain):
            size = jnp.linalg.norm(exact)
            error, usual = (float(jnp.linalg.norm(x.astype("float32") - exact) / size)
                            for x in (ours, theirs))
            print(n, m, width, masked, name, f"cudnn {error:.2e} plain bf16 {usual:.2e}")
            assert error < 1e-2, (n, m, width, masked, name, error)
"""


def test_cudnns_attention_is_ours_and_so_are_its_gradients():
    env = {**os.environ, "JAX_PLATFORMS": "cuda"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(CUDNN)], env=env, check=True)


@pytest.mark.parametrize("config", ["pixel_diffusion:part=base", "autoencoder"])
def test_a_resumed_run_equals_the_unbroken_one_on_a_gpu(config, pictures, tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    # Where it is set, programs are kept there and not in the workdir.
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    more = "--config.train.steps=200", "--config.train.checkpoint_every=50"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = runs.run([*runs.PROGRAM, *runs.command(config, whole, pictures, *more)], env)
    assert result.returncode == 0, result.stderr
    # Another run may find other kernels to be the fastest: this one begins with the first's.
    shutil.copytree(whole / "programs", broken / "programs")
    arguments = [*runs.PROGRAM, *runs.command(config, broken, pictures, *more)]
    log = tmp_path / "log"
    code = runs.interrupt(arguments, env, runs.TERMINATE, runs.reached(broken, 5), log)
    assert code == 143, log.read_text()
    result = runs.run(arguments, env)
    assert result.returncode == 0, result.stderr
    expected, found = runs.arrays(whole), runs.arrays(broken)
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert expected.keys() == found.keys() and not different, different[:5]
