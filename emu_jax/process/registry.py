"""The names that a config may give for schedules, processes and samplers: one line an entry.

Code outside this package adds its own by an entry:

    SAMPLERS["mine"] = SamplerKind(GaussianProcess, MySampler)
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from emu_jax.registry import Lazy, loaded, look_up

if TYPE_CHECKING:  # This module does not import JAX.
    from emu_jax.process.protocol import Process, Sampler
    from emu_jax.process.schedules import Schedule

GAUSSIAN = Lazy("emu_jax.process.gaussian:GaussianProcess")
MASKING = Lazy("emu_jax.process.masking:MaskingProcess")
_DISCRETE = Lazy("emu_jax.process.schedules:Discrete")

# The time grids of emu_jax.process.sampling.
Spacing = Literal["trailing", "uniform", "leading", "karras"]
SPACINGS: tuple[str, ...] = get_args(Spacing)


class ProcessKind(NamedTuple):
    """The data that a process corrupts, and what builds it.

    ``build`` takes the keys of ``config.process``; a process of tokens takes ``codes`` as well, the
    size of the codebook.
    """

    data: Literal["continuous", "tokens"]
    build: Callable[..., Any]


class SamplerKind(NamedTuple):
    """The class of processes that a sampler can invert, and what builds it; its ``calls`` is its
    cost. ``takes``: keys of ``config.sampling`` that ``build`` takes.
    """

    process: Any
    build: Callable[..., "Sampler"]
    takes: tuple[str, ...] = ()


# Schedules of discrete steps: a low-resolution image can have their noise as well.
DISCRETE: dict[str, Callable[[], "Schedule"]] = {
    "linear": partial(_DISCRETE, "linear", 1e-4, 0.02),
    "scaled_linear": partial(_DISCRETE, "scaled_linear"),
    "scaled_linear_zero_snr": partial(_DISCRETE, "scaled_linear", zero_terminal_snr=True),
    "squared_cosine": partial(_DISCRETE, "cosine"),
}

SCHEDULES: dict[str, Callable[[], "Schedule"]] = {
    "cosine": Lazy("emu_jax.process.schedules:Cosine"),
    **DISCRETE,
    "flow": Lazy("emu_jax.process.schedules:Flow"),
}

PROCESSES: dict[str, ProcessKind] = {
    "gaussian": ProcessKind("continuous", Lazy("emu_jax.process.gaussian:make_gaussian")),
    "masking": ProcessKind("tokens", MASKING),
}

SAMPLERS: dict[str, SamplerKind] = {
    "ddim": SamplerKind(GAUSSIAN, Lazy("emu_jax.process.samplers:DDIM")),
    "ancestral": SamplerKind(GAUSSIAN, Lazy("emu_jax.process.samplers:Ancestral")),
    "euler": SamplerKind(GAUSSIAN, Lazy("emu_jax.process.samplers:Euler")),
    "heun": SamplerKind(GAUSSIAN, Lazy("emu_jax.process.samplers:Heun")),
    "dpmpp_2m": SamplerKind(GAUSSIAN, Lazy("emu_jax.process.samplers:DPMSolverPP2M")),
    "parallel": SamplerKind(
        MASKING, Lazy("emu_jax.process.decoding:ParallelDecoding"), ("temperature",)
    ),
}


def make_sampler(name: str, process: "Process", **settings: Any) -> "Sampler":
    """The sampler called ``name``, with those of the ``settings`` that it takes.

    Raises:
      UserError: there is no such sampler of this process.
    """
    fitting = {
        name: kind for name, kind in SAMPLERS.items() if isinstance(process, loaded(kind.process))
    }
    kind = look_up(fitting, name, "sampling.sampler")
    return kind.build(**{key: settings[key] for key in kind.takes if key in settings})
