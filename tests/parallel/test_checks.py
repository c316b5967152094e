"""The comparison of a kernel with XLA's form before its first use; kernels are made wrong here."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.nn.attention import attend
from emu_jax.parallel import attention, checks, convolution
from emu_jax.parallel.attention import make_attend
from emu_jax.parallel.convolution import make_convolve
from emu_jax.parallel.flash import flash


def mesh_of(platform: str, processes: int = 1):
    """A mesh of devices that this machine does not have."""
    kinds = dict(platform=platform, compute_capability="9.0", device_kind=f"a {platform}")
    devices = [SimpleNamespace(process_index=i, **kinds) for i in range(processes)]
    shape = {"data": processes, "fsdp": 1}
    return SimpleNamespace(
        devices=np.array(devices), size=processes, shape=shape, axis_names=tuple(shape)
    )


@pytest.fixture
def here(monkeypatch):
    """Kernels of TPUs and GPUs are compared on the CPU, as in a new process."""
    monkeypatch.setattr(checks, "local_device", lambda mesh: jax.devices()[0])
    monkeypatch.setattr(checks, "_found", {})
    monkeypatch.setattr(checks, "_told", set())
    monkeypatch.setattr(attention, "_COMPARED", 128)


def plain(q, k, v, keys, off=0.0):
    """XLA's attention in the place of a kernel, wrong by a share of the result."""
    return attend(q, k, v, keys[:, None, None]) * (1 + off)


def test_our_kernels_pass(here, monkeypatch):
    """The flash kernel in Pallas' interpreter; the convolution as it is."""
    monkeypatch.setattr(attention, "flash", partial(flash, interpret=True))
    assert make_attend("auto", mesh_of("tpu"), strict=True) is not attend
    assert checks.difference(*convolution._compared(), jax.devices()[0]) == ""
    assert checks._found == {"attention=flash": ""}


def test_a_wrong_kernel_is_replaced_and_named_once(here, monkeypatch, capsys):
    monkeypatch.setattr(attention, "cudnn", partial(plain, off=0.05))
    for _ in range(2):
        assert make_attend("auto", mesh_of("gpu")) is attend
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "attention=cudnn does not compute what XLA does on cpu" in err
    assert "the relative error of its result is" in err and "over 0.01" in err
    monkeypatch.setattr(attention, "cudnn", plain)  # what was found is not computed again
    assert make_attend("auto", mesh_of("gpu")) is attend
    with pytest.raises(UserError, match=r"over 0\.01\. .* set attention=xla or deterministic=Fal"):
        make_attend("auto", mesh_of("gpu"), strict=True)
    with pytest.raises(UserError, match=r"over 0\.01\. .* set attention=xla\."):
        make_attend("cudnn", mesh_of("gpu"))


def test_a_kernel_with_wrong_gradients_or_that_does_not_run_is_not_used(here, monkeypatch, capsys):
    def stopped(q, k, v, keys):
        return plain(jax.lax.stop_gradient(q), k, v, keys)

    def broken(q, k, v, keys):
        raise NotImplementedError("no such chip\nmore")

    for kernel, said in ((stopped, "error of its gradient is 1,"), (broken, "(no such chip)")):
        monkeypatch.setattr(attention, "cudnn", kernel)
        checks._found.clear()
        checks._told.clear()
        assert make_attend("auto", mesh_of("gpu")) is attend
        assert said in capsys.readouterr().err


def test_a_wrong_convolution_is_replaced(here, monkeypatch, capsys):
    right = convolution.by_columns
    monkeypatch.setattr(convolution, "by_columns", lambda *given: 1.1 * right(*given))
    assert make_convolve(mesh_of("tpu")) is jax.lax.conv_general_dilated
    assert "the convolution by columns does not compute" in capsys.readouterr().err
    with pytest.raises(UserError, match="set deterministic=False"):
        make_convolve(mesh_of("tpu"), strict=True)


def test_every_host_decides_alike(here, monkeypatch, capsys):
    """One that finds nothing wrong follows the others; they are asked every time, by all:
    about long calls and, if these may be used, about texts.
    """
    asked = []

    def others(failed):
        def ask(value):
            asked.append(value)
            return [value, failed]

        return ask

    monkeypatch.setattr(attention, "cudnn", plain)
    monkeypatch.setattr(checks, "on_every_process", others(0))
    assert make_attend("auto", mesh_of("gpu", 2)) is not attend
    monkeypatch.setattr(checks, "on_every_process", others(1))
    assert make_attend("auto", mesh_of("gpu", 2)) is attend
    assert asked == [0, 0, 0] and "it fails on another host" in capsys.readouterr().err
    assert make_attend("auto", mesh_of("gpu")) is not attend  # alone: a mesh of this host's devices
    assert asked == [0, 0, 0]


def test_nothing_is_compared_on_cpus_and_in_planning(monkeypatch):
    monkeypatch.setattr(checks, "difference", None)
    monkeypatch.setattr(attention, "flash", lambda q, *rest: q)
    assert make_attend("auto", mesh_of("cpu")) is attend
    assert make_convolve(mesh_of("cpu")) is jax.lax.conv_general_dilated
    planned = make_attend("auto", mesh_of("tpu"), strict=True)
    q = jnp.ones((1, attention.LONG, 1, 8))
    assert planned(q, q, q) is q
