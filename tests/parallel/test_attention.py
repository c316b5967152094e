"""Which kernel runs when, and that every device runs it on its own rows."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from emu_jax.errors import UserError
from emu_jax.nn.attention import attend
from emu_jax.parallel import attention
from emu_jax.parallel.attention import LONG, make_attend
from emu_jax.parallel.mesh import make_mesh

SHARDED = """
    from functools import partial
    import jax, jax.numpy as jnp, numpy as np
    from emu_jax.nn.attention import attend
    from emu_jax.parallel.attention import by_rows
    from emu_jax.parallel.flash import flash
    from emu_jax.parallel.mesh import make_mesh, sampling_mesh
    from emu_jax.parallel.sharding import batch_sharding
    from emu_jax.planning.hlo import read_program
    from emu_jax.planning.traffic import traffic
    mesh = make_mesh(fsdp=2)
    rng = np.random.default_rng(0)
    q, k, v = (jax.device_put(rng.normal(size=(4, 128, 2, 8)).astype("f"), batch_sharding(mesh))
               for _ in range(3))
    keys = jax.device_put(np.arange(128) < np.array([[128], [70], [33], [9]]), batch_sharding(mesh))
    kernel = by_rows(partial(flash, interpret=True), mesh)
    def loss(f, q, k, v):
        return jnp.sum(jnp.sin(f(q, k, v)))
    for keys in (keys, None):
        grad = jax.jit(jax.grad(partial(loss, lambda *x: kernel(*x, keys)), (0, 1, 2)))
        mask = None if keys is None else keys[:, None, None]
        expected = jax.grad(partial(loss, lambda *x: attend(*x, mask)), (0, 1, 2))(q, k, v)
        compiled = grad.lower(q, k, v).compile()
        assert traffic(read_program(compiled.as_text())) == []
        for ours, theirs in zip(compiled(q, k, v), expected):
            assert ours.sharding.is_equivalent_to(batch_sharding(mesh), 4), ours.sharding
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)

    keys = np.arange(128) < np.array([[128], [70], [33], [9]])
    for rows in (1, 2):  # fewer than devices: these divide the queries of a row
        mesh = sampling_mesh(rows, jax.devices())
        own = [x[:rows] for x in (q, k, v)]
        for mask in (keys[:rows], None):
            ours = jax.jit(by_rows(partial(flash, interpret=True), mesh))(*own, mask)
            assert {x.data.size for x in ours.addressable_shards} == {ours.size // 4}
            theirs = attend(*own, None if mask is None else mask[:, None, None])
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
"""


def test_every_device_attends_to_its_own_rows():
    env = runs.environment(4)
    subprocess.run([sys.executable, "-c", textwrap.dedent(SHARDED)], env=env, check=True)


def mesh_of(platform: str, capability: str = "9.0", size: int = 4):
    device = SimpleNamespace(
        platform=platform, compute_capability=capability, device_kind=f"a {platform}"
    )
    shape = {"data": size, "fsdp": 1}
    return SimpleNamespace(
        devices=np.array([device]), size=size, shape=shape, axis_names=tuple(shape)
    )


@pytest.fixture
def ran(monkeypatch):
    """Which kernel an ``attend`` runs on arrays of these shapes."""
    calls = []

    def record(name):
        def attend(q, *rest):
            calls.append(name)
            return q

        return attend

    for name in ("flash", "cudnn"):
        monkeypatch.setattr(attention, name, name)
    monkeypatch.setattr(attention, "attend", record("xla"))
    monkeypatch.setattr(attention, "by_rows", lambda kernel, mesh: record(kernel))

    def run(kind, mesh, b=4, n=LONG, m=LONG, width=64, dtype=jnp.bfloat16, mask=None):
        q, k = jnp.zeros((b, n, 1, width), dtype), jnp.zeros((b, m, 1, width), dtype)
        make_attend(kind, mesh)(q, k, k, mask)
        return calls.pop()

    return run


def test_which_one_runs(ran):
    tpu, gpu = mesh_of("tpu"), mesh_of("gpu")
    keys = jnp.ones((4, 1, 1, LONG), bool)
    assert ran("auto", tpu) == ran("flash", tpu) == ran("auto", tpu, mask=keys) == "flash"
    assert ran("auto", gpu) == ran("cudnn", gpu) == ran("auto", gpu, mask=keys) == "cudnn"
    assert ran("xla", tpu) == ran("xla", gpu) == "xla"
    assert ran("auto", tpu, dtype=jnp.float32) == "flash"
    assert ran("auto", gpu, dtype=jnp.float32) == "xla"
    # Few queries, and rows that the devices do not divide, whatever was asked for.
    for short in (dict(n=LONG - 1), dict(b=6)):
        assert ran("flash", tpu, **short) == ran("cudnn", gpu, **short) == "xla"
    assert ran("flash", tpu, m=77) == "flash" and ran("cudnn", gpu, m=77) == "cudnn"
    assert ran("auto", mesh_of("gpu", "7.5")) == "xla"  # too old for it


def test_cudnn_that_fails_over_texts_leaves_them_to_xla(ran, monkeypatch):
    """Unless the kernel was selected by name, or the run must be deterministic."""

    def usable(name, mesh, kernel, plain, inputs, strict=""):
        if "texts" in name and strict:
            raise UserError(f"{name} fails: set {strict}")
        return "texts" not in name

    gpu = mesh_of("gpu")
    monkeypatch.setattr(attention, "usable", usable)
    assert ran("auto", gpu) == "cudnn" and ran("auto", gpu, m=77) == "xla"
    with pytest.raises(UserError, match="over texts fails: set attention=xla"):
        make_attend("cudnn", gpu)
    with pytest.raises(UserError, match="or deterministic=False"):
        make_attend("auto", gpu, strict=True)


def test_a_text_is_padded_for_cudnn(monkeypatch):
    """What jax would compute with the padded arrays is what plain attention computes without."""

    def stand_in(q, k, v, mask, implementation):
        assert k.shape[1] % 8 == 0 and mask.shape[-1] == k.shape[1] and implementation == "cudnn"
        return plain(q, k, v, mask=mask)

    plain = jax.nn.dot_product_attention
    chance = np.random.default_rng(0)
    q, k, v = (jnp.asarray(chance.normal(size=(2, n, 2, 8)), jnp.float32) for n in (6, 5, 5))
    keys = jnp.arange(5) < jnp.array([[5], [3]])
    wanted = attend(q, k, v, keys[:, None, None]), attend(q, k, v)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    for one, other in zip(wanted, (attention.cudnn(q, k, v, x) for x in (keys, None)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_cpu_has_the_plain_one():
    assert make_attend("auto", make_mesh()) is make_attend("xla", make_mesh()) is attend


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        ("flash", dict(mask=jnp.ones((1, 1, LONG, LONG), bool)), "differ between heads or quer"),
        ("flash", dict(width=640), "heads of width 640, over 512"),
        ("cudnn", dict(dtype=jnp.float32), "float32, only 16 bits"),
        ("cudnn", dict(width=20), "heads of width 20"),
        ("cudnn", dict(n=LONG + 1, mask=jnp.ones((1, 1, 1, LONG), bool)), "odd number of quer"),
        ("cudnn", dict(n=LONG + 1, m=77), "odd number of queries"),
    ],
)
def test_what_a_kernel_cannot_take_is_refused_or_goes_to_xla(kind, shape, words, ran):
    mesh = mesh_of({"flash": "tpu", "cudnn": "gpu"}[kind])
    with pytest.raises(UserError, match=words) as error:
        ran(kind, mesh, **shape)
    assert "\n" not in str(error.value) and "attention=auto" in str(error.value)
    assert ran("auto", mesh, **shape) == "xla"


@pytest.mark.parametrize(
    ("kind", "platform", "words"),
    [
        ("splash", "tpu", "attention is 'splash'; use one of auto, xla, flash, cudnn"),
        ("cudnn", "tpu", "does not run on a tpu; use attention=auto, which is flash"),
        ("flash", "cpu", "does not run on a cpu; use attention=auto, which is xla"),
    ],
)
def test_a_kernel_that_the_devices_do_not_have_is_refused(kind, platform, words):
    with pytest.raises(UserError, match=words):
        make_attend(kind, mesh_of(platform))
