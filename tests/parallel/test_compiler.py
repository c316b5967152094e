"""Flags of the compiler: the user's count, unknown versions get none, and runs record theirs."""

import os
import subprocess
import sys

import pytest

from emu_jax.parallel import compiler

OURS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"


@pytest.fixture
def release(monkeypatch):
    def set_release(jaxlib: str, flags: str) -> None:
        monkeypatch.setattr(compiler, "version", lambda name: jaxlib)
        monkeypatch.setenv("XLA_FLAGS", flags)

    return set_release


@pytest.mark.parametrize(
    "jaxlib, given, wanted",
    [
        ("0.10.2", "", OURS),
        ("0.10.2", "--b=1", f"{OURS} --b=1"),
        ("0.10.2", f"--b=1 {OURS}", f"--b=1 {OURS}"),  # a second call changes nothing
        ("0.11.0", "--b=1", "--b=1"),  # XLA ends a process at an unknown flag
    ],
)
def test_flags_belong_to_a_version_and_precede_those_of_the_user(release, jaxlib, given, wanted):
    release(jaxlib, given)
    compiler.set_flags()
    assert os.environ["XLA_FLAGS"] == wanted


def test_xla_accepts_the_flags_and_hands_no_product_to_ynnpack():
    """In a process of its own, because flags are read once. Default: the product is a fusion."""
    code = (
        "import sys\n"
        "from emu_jax.parallel.compiler import set_flags\n"
        "if sys.argv[1:]: set_flags()\n"
        "import jax, jax.numpy as jnp\n"
        "x = jax.ShapeDtypeStruct((256, 256), jnp.float32)\n"
        "print('ynn' in jax.jit(jnp.matmul).lower(x, x).compile().as_text())\n"
    )

    def found(*arguments: str) -> str:
        env = {**os.environ, "XLA_FLAGS": ""}
        command = [sys.executable, "-c", code, *arguments]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    assert found("set") == "False"
    if compiler.version("jaxlib").startswith("0.10."):
        assert found() == "True"  # else the flag is no longer needed


def test_a_resumed_run_knows_whether_the_compiler_has_changed(release):
    release("0.10.2", "--b=1 --a=1 --a=1 --xla_force_host_platform_device_count=2")
    then = compiler.compiler()
    release("0.10.2", "--a=1 --b=1")
    assert compiler.difference(then, compiler.compiler()) == ""
    release("0.10.3", "--a=1")
    said = compiler.difference(then, compiler.compiler())
    assert "jaxlib was '0.10.2' and is '0.10.3'" in said
    assert "xla_flags was '--a=1 --b=1' and is '--a=1'" in said
    assert compiler.difference({}, compiler.compiler()) == ""
