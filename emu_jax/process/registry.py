"""The names that a config may give for schedules, processes and samplers: one line an entry.

Code outside this package adds its own by an entry:

    SAMPLERS["mine"] = SamplerKind(GaussianProcess, MySampler)
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from emu_jax.errors import UserError
from emu_jax.process.decoding import ParallelDecoding
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.protocol import Process, Sampler
from emu_jax.process.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, Heun
from emu_jax.process.schedules import Cosine, Discrete, Flow, Schedule

Entry = TypeVar("Entry")


class SamplerKind(NamedTuple):
    """The processes that a sampler can invert, and what builds it; its ``calls`` is its cost."""

    process: type
    build: Callable[..., Sampler]


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": Cosine,
    "linear": partial(Discrete, "linear", 1e-4, 0.02),
    "scaled_linear": partial(Discrete, "scaled_linear"),
    "scaled_linear_zero_snr": partial(Discrete, "scaled_linear", zero_terminal_snr=True),
    "squared_cosine": partial(Discrete, "cosine"),
    "flow": Flow,
}

PROCESSES: dict[str, Callable[..., Process]] = {
    "gaussian": GaussianProcess,
    "masking": MaskingProcess,
}

SAMPLERS: dict[str, SamplerKind] = {
    "ddim": SamplerKind(GaussianProcess, DDIM),
    "ancestral": SamplerKind(GaussianProcess, Ancestral),
    "euler": SamplerKind(GaussianProcess, Euler),
    "heun": SamplerKind(GaussianProcess, Heun),
    "dpmpp_2m": SamplerKind(GaussianProcess, DPMSolverPP2M),
    "parallel": SamplerKind(MaskingProcess, ParallelDecoding),
}


def look_up(registry: Mapping[str, Entry], name: str, key: str) -> Entry:
    """The entry called ``name``; ``key`` is the config's key, for the message of the UserError."""
    if name not in registry:
        raise UserError(f"{key} is {name!r}; use one of {', '.join(registry)}.")
    return registry[name]


def make_sampler(name: str, process: Process, **settings: Any) -> Sampler:
    """The sampler called ``name``, with ``settings`` of its own.

    Raises:
      UserError: there is no such sampler of this process.
    """
    fitting = {
        name: kind.build for name, kind in SAMPLERS.items() if isinstance(process, kind.process)
    }
    return look_up(fitting, name, "sampling.sampler")(**settings)
