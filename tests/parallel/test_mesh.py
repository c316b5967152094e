"""Meshes: sizes that fit, sizes that do not, and two processes as two slices."""

import socket
import subprocess
import sys
import textwrap

import jax
import pytest
import runs

from emu_jax.errors import UserError
from emu_jax.parallel import distributed
from emu_jax.parallel.mesh import images_at_once, make_mesh, sampling_mesh
from emu_jax.planning.chips import open_topology


def run(program: str, devices: int = 8, env: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, env=runs.environment(devices) | (env or {}))


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (1, dict(data=2, fsdp=1, space=4)),  # two rows for guidance
        (3, dict(data=2, fsdp=1, space=4)),
        (4, dict(data=8, fsdp=1, space=1)),
        (8, dict(data=8, fsdp=1)),
        (20, dict(data=8, fsdp=1)),
    ],
)
def test_devices_divide_few_images(images, shape):
    pytest.importorskip("libtpu")
    mesh = sampling_mesh(images, open_topology("v5e:2x4").devices)
    assert dict(mesh.shape) == shape
    assert images_at_once(images, mesh) == (24 if images == 20 else images)


def test_all_devices_by_default():
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3 * 64}, "does not fit"),
        ({"data": 7 * 64}, "does not fit"),
        ({"data": -1, "fsdp": -1}, "only one may be -1"),
        ({"fsdp": 0}, "sizes must be positive"),
        ({"slices": 64 * 7}, "must divide"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(sizes, words):
    with pytest.raises(UserError, match=words) as error:
        make_mesh(**sizes)
    assert "\n" not in str(error.value)


def test_eight_devices():
    program = """
        import jax
        from emu_jax.errors import UserError
        from emu_jax.parallel.mesh import make_mesh
        assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
        assert dict(make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
        assert dict(make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4}
        assert dict(make_mesh(fsdp=2, devices=jax.devices()[4:]).shape) == {"data": 2, "fsdp": 2}
        assert min(d.id for d in make_mesh(devices=jax.devices()[4:]).devices.flat) == 4
        assert sorted(d.id for d in make_mesh(fsdp=4).devices.flat) == list(range(8))
        for sizes in ({"fsdp": 3}, {"data": 4, "fsdp": 4}, {"slices": 2}):
            try:
                make_mesh(**sizes)
            except UserError as error:
                assert "8 devices" in str(error) or "slices=2" in str(error), error
            else:
                raise AssertionError(sizes)
    """
    assert run(program).wait() == 0


def test_two_processes_find_each_other_and_make_two_slices():
    program = """
        import jax, numpy as np
        from emu_jax.parallel.distributed import initialize
        from emu_jax.parallel.mesh import make_mesh
        from emu_jax.parallel.sharding import fetch, process_rows, put_batch
        initialize()
        initialize()  # A second call changes nothing.
        assert jax.process_count() == 2 and jax.device_count() == 4
        mesh = make_mesh(fsdp=2, slices=2)
        # fsdp stays inside a process, data runs across.
        assert [{d.process_index for d in row} for row in mesh.devices] == [{0}, {1}]
        rows = process_rows(8, mesh)
        assert rows.tolist() == [list(range(4)), list(range(4, 8))][jax.process_index()]
        batch = put_batch({"a": {"x": rows}}, mesh)
        assert batch["a"]["x"].shape == (8,)
        assert jax.jit(lambda b: (b["a"]["x"] ** 2).sum())(batch) == 140
        # A mesh that takes a device of each process in turn, as one along a TPU's links may.
        a, b, c, d = jax.devices()
        mesh = make_mesh(fsdp=2, devices=[a, c, b, d])
        rows = process_rows(8, mesh)
        assert rows.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]][jax.process_index()]
        batch = put_batch({"x": 10 * rows}, mesh)
        assert fetch(batch)["x"].tolist() == list(range(0, 80, 10))
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    env["JAX_PLATFORMS"] = "cpu"
    processes = [run(program, 2, {**env, "JAX_PROCESS_ID": str(i)}) for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def test_a_single_machine_waits_for_nobody(monkeypatch):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: called.append(args))
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.initialize()
    assert not called
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    distributed.initialize()
    assert called == [(None, None, None)]
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'one'"):
        distributed.initialize("localhost:1234")


def test_a_coordinator_without_the_rest_is_one_sentence(monkeypatch):
    def refuse(*args, **_):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES"):
        distributed.initialize("localhost:1234")
