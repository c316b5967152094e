"""GPUs by name and by file, and a real compilation for GPUs that are not here."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax._src.cudnn.fused_attention_stablehlo as fused_attention
import pytest
import runs

from emu_jax.errors import UserError
from emu_jax.planning import gpus
from emu_jax.planning.chips import peak_of
from emu_jax.planning.gpus import cudnn_of, gpu_facts, is_gpu, known_gpu, open_gpus, read_factors

installed = any(find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))

# The format of XLA's repository, with the numbers of no GPU.
DESCRIPTION = """
gpu_device_info {
  core_count: 100
  memory_bandwidth: 2000000000000
  clock_rate_ghz: 1.5
  device_memory_size: 64000000000
  cuda_compute_capability {
    major: 9
    minor: 1
  }
  matrix_unit_description {
    rate_infos {
      key: 10
      value {
        clock_rate_ghz: 9.9
        units_per_core: 9
        ops_per_clock: 9
      }
    }
    rate_infos {
      key: 16
      value {
        clock_rate_ghz: 1.5
        units_per_core: 4
        ops_per_clock: 512
      }
    }
  }
}
platform_name: "CUDA"
device_description_str: "NVIDIA X1"
"""


def test_the_facts_of_a_gpu_are_those_of_its_device():
    for name, facts in gpu_facts().items():
        gpu = known_gpu(name)
        assert peak_of(facts["kind"]) == gpu.peak
        assert gpu.nvlink > gpu.network > 0 and gpu.bandwidth > 1e12 and gpu.memory > 4e10
        for text in (f"core_count: {facts['cores']}", f'"{facts["kind"]}"', "minor: 10"):
            assert text in gpu.target


def test_factors_say_what_they_come_from():
    own, same, none = (read_factors(name) for name in ("h200", "h100", "b200"))
    assert own.source == same.source == "h200, 2026-11-27" and own.kinds["attention"] == 2.55
    assert none.source == "" and none.kinds == {} and none.rest == 1
    for known in json.loads((runs.ROOT / "emu_jax/planning/gpu_factors.json").read_text()).values():
        assert known.keys() in ({"same_as"}, {"device", "date", "versions", "run", "kinds", "rest"})


def test_a_gpu_by_a_file(tmp_path, monkeypatch):
    path = tmp_path / "x1.txtpb"
    path.write_text(DESCRIPTION)
    assert is_gpu(f"{path}:8") and is_gpu("a100:4x8") and not is_gpu("v5e:2x2")
    gpu = gpus._from_file(str(path))
    assert (gpu.name, gpu.capability, gpu.memory, gpu.clock) == ("x1", "9.1", 64e9, 1.5e9)
    assert gpu.peak == pytest.approx(100 * 4 * 512 * 2 * 1.5e9) and gpu.factors.source == ""
    for old, new, words in (
        ("key: 16", "key: 17", "peak of NVIDIA X1 is unknown"),
        ("core_count", "cores", "has no core_count"),
        ('"CUDA"', '"ROCM"', "does not describe an NVIDIA GPU"),
    ):
        path.write_text(DESCRIPTION.replace(old, new))
        with pytest.raises(UserError, match=words):
            open_gpus(f"{path}:1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h100", "a name such as h100:8"),
        ("h100:0", "a name such as h100:8"),
        ("h100:2x2x2", "a name such as h100:8"),
        ("nowhere.txtpb:8", "nowhere.txtpb cannot be read"),
    ],
)
def test_gpus_that_are_none_are_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as error:
        open_gpus(name)
    assert "\n" not in str(error.value)


def test_without_the_compiler_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "emu_jax\[plan-gpu\]"'):
        open_gpus("h100:8")


def test_jax_asks_the_target_and_then_this_machine_again():
    asked = fused_attention.check_cudnn_version, fused_attention.check_compute_capability
    with cudnn_of(known_gpu("a100")):
        assert fused_attention.check_cudnn_version() == 91_000
        assert fused_attention.check_compute_capability("8.0")
        assert not fused_attention.check_compute_capability("9.0")
        assert fused_attention.is_cuda_compute_capability_equal("8.0")
    assert asked == (fused_attention.check_cudnn_version, fused_attention.check_compute_capability)


COMPILED = """
    import jax, jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P
    from emu_jax.parallel.mesh import make_mesh
    from emu_jax.parallel.placement import placement
    from emu_jax.planning.gpus import open_gpus
    from emu_jax.planning.hlo import read_program
    from emu_jax.planning.roofline import kernels
    from emu_jax.planning.traffic import traffic

    topology = open_gpus("h100:2x2")
    mesh = make_mesh(fsdp=2, devices=topology.devices)
    on = placement(mesh, "cudnn")

    def loss(w, x):
        y = jax.lax.conv_general_dilated(
            x, w.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        q = y.reshape(y.shape[0], -1, 2, 64)
        return jnp.mean(on.attend(q, q, q).astype("float32") ** 2)

    w = jax.ShapeDtypeStruct((3, 3, 64, 128), "float32", sharding=NamedSharding(mesh, P()))
    x = jax.ShapeDtypeStruct(
        (4, 32, 32, 64), "bfloat16", sharding=NamedSharding(mesh, P(("data", "fsdp")))
    )
    with topology.lowering():
        lowered = jax.jit(jax.value_and_grad(loss)).lower(w, x)
    program = read_program(lowered.compile(topology.compiler_options).as_text())
    hosts = [device.process_index for device in mesh.devices.flat]
    found = [k for k in kernels(program, hosts) if k.flops]
    conv, pair = 2 * 32 * 32 * 9 * 64 * 128, 2 * 2 * 1024 * 1024 * 64
    assert sorted(k.flops for k in found) == [conv, conv, 2 * pair, 5 * pair], found
    assert {k.sort for k in found} == {"convolution", "attention"}
    assert {t.link for t in traffic(program, hosts)} == {"network"}
"""


@pytest.mark.skipif(not installed, reason="needs the extra plan-gpu, in an environment of its own")
def test_a_program_compiled_for_two_hosts_of_gpus():
    code = "\n".join(line[4:] for line in COMPILED.splitlines())
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(runs.ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
