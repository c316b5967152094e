"""The registries: what each name builds, what it costs, and names that do not exist."""

import jax
import jax.numpy as jnp
import pytest

from emu_jax.errors import UserError
from emu_jax.process.decoding import ParallelDecoding
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.registry import (
    PROCESSES,
    SAMPLERS,
    SCHEDULES,
    SamplerKind,
    make_sampler,
)
from emu_jax.process.samplers import DDIM, Heun
from emu_jax.process.sampling import sample, time_grid
from emu_jax.process.schedules import Cosine
from emu_jax.registry import loaded, look_up

GAUSSIAN, MASKING = GaussianProcess(Cosine(), "v"), MaskingProcess(5)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_calls_the_denoiser_as_often_as_it_says(name, steps):
    process = MASKING if loaded(SAMPLERS[name].process) is MaskingProcess else GAUSSIAN
    calls = []

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.zeros((*x.shape, 5)) if process is MASKING else 0.5 * x

    key, sampler = jax.random.key(0), make_sampler(name, process)
    x = process.prior(key, (1, 2, 2, 1))
    sample(denoise, process, sampler, time_grid(process, steps), key, x)
    jax.effects_barrier()
    assert len(calls) == sampler.calls(steps)


def test_names_and_settings():
    assert make_sampler("euler", GAUSSIAN) == DDIM()
    assert make_sampler("ancestral", GAUSSIAN) == DDIM(eta=1.0)
    assert make_sampler("heun", GAUSSIAN) == Heun()
    assert make_sampler("parallel", MASKING, temperature=2.0) == ParallelDecoding(2.0)


def test_an_unknown_name_is_answered_by_the_known_ones():
    names = "ddim, ancestral, euler, heun, dpmpp_2m"
    for name in ("plms", "parallel"):
        with pytest.raises(UserError) as error:
            make_sampler(name, GAUSSIAN)
        assert str(error.value) == f"sampling.sampler is {name!r}; use one of {names}."
    with pytest.raises(UserError, match=r"sampling.sampler is 'ddim'; use one of parallel\."):
        make_sampler("ddim", MASKING)
    for registry, key in ((SCHEDULES, "process.schedule"), (PROCESSES, "process.kind")):
        with pytest.raises(UserError, match=f"{key} is 'sine'; use one of {', '.join(registry)}"):
            look_up(registry, "sine", key)


def test_code_outside_the_package_adds_a_sampler(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "half", SamplerKind(GaussianProcess, lambda: DDIM(0.5)))
    assert make_sampler("half", GAUSSIAN) == DDIM(0.5)
