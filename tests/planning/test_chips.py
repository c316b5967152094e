"""Topologies that are there, those that are not, and the compiler itself."""

import os
import subprocess
import sys

import pytest

from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning import chips
from emu_jax.planning.chips import CHIPS, open_topology, peak_of

pytest.importorskip("libtpu")  # the compiler: Linux on x86 only


@pytest.mark.parametrize(
    ("name", "devices"), [("v4:2x2x4", 16), ("v5e:1x1", 1), ("v5e:16x16", 256), ("v5p:4x4x8", 128)]
)
def test_a_device_is_a_chip(name, devices):
    topology = open_topology(name)
    assert len(topology.devices) == devices
    assert peak_of(topology.devices[0].device_kind) == topology.chip.peak
    assert topology.chip is CHIPS[name.split(":")[0]]
    assert dict(make_mesh(fsdp=-1, data=1, devices=topology.devices).shape)["fsdp"] == devices


def test_a_peak_goes_by_the_name_that_the_device_gives_itself():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_of("cpu") is None and peak_of("NVIDIA H100") is None


def test_slices_are_what_data_runs_across():
    topology = open_topology("v5e:2x2", slices=2)
    mesh = make_mesh(fsdp=4, slices=2, devices=topology.devices)
    assert [{device.slice_index for device in row} for row in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9:2x2", "one of the chips v4, v5e, v5p, v6e"),
        ("v5e", "a name such as v5e:16x16"),
        ("v5e:0x2", "a name such as v5e:16x16"),
        ("v5e:3x3", "not divisible by"),
    ],
)
def test_a_topology_that_is_none_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as error:
        open_topology(name)
    assert "\n" not in str(error.value)


def test_without_the_compiler_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "emu_jax\[plan\]"'):
        open_topology("v5e:2x2")


def test_two_processes_may_plan_at_once():
    open_topology("v5e:2x2")
    code = "from emu_jax.planning.chips import open_topology as o; print(len(o('v5e:2x2').devices))"
    # Nor does it ask which platform there is: without the variable too, all is said in one line.
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS" and k[:4] != "TPU_"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "4\n"), run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_clock_fits_the_peak(chip):
    """FLOPs a cycle are whole numbers of matrix units: 128 x 128, or 256 x 256 on v6e."""
    unit = 2 * (256 if chip.name == "v6e" else 128) ** 2
    units = chip.peak / chip.clock / unit
    assert units == pytest.approx(round(units), rel=5e-3)
