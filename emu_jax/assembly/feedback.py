"""From a config to feedback learning."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from emu_jax.assembly.adapters import make_adapters
from emu_jax.assembly.generation import make_generation, make_sampling
from emu_jax.assembly.registry import TEACHERS
from emu_jax.assembly.rewards import read_texts
from emu_jax.data.mixture import Column
from emu_jax.errors import UserError
from emu_jax.parallel.placement import Placement
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.registry import loaded, look_up
from emu_jax.tasks.adversary import Adversary
from emu_jax.tasks.feedback import ADVERSARY, Feedback, Trajectory
from emu_jax.tasks.teachers import Teacher


def make_feedback(config: ConfigDict, on: Placement) -> Feedback:
    base, section = make_generation(config, on), config.feedback
    if not isinstance(base.process, GaussianProcess):
        raise UserError(
            f"task=feedback needs a Gaussian process, and process.kind is "
            f"{config.process.kind!r}: tokens pass no gradient to the denoiser."
        )
    if base.low:
        raise UserError(
            "task=feedback is for models that draw from prompts alone: set low_resolution.factor "
            "to 0."
        )
    shared = _trajectory(section, base.process)
    teachers, weights, trajectories, frozen = {}, {}, {}, dict(base.frozen)
    adversary, start = "", None
    for name, entry in config.teachers.items():
        if name in frozen:
            raise UserError(
                f"teachers.{name} has the name of another frozen network: give it another."
            )
        arguments = entry.to_dict()
        make = loaded(look_up(TEACHERS, arguments.pop("kind"), f"teachers.{name}.kind"))
        weights[name], own = arguments.pop("weight"), arguments.pop("trajectory", None)
        trajectories[name] = _trajectory(ConfigDict(own), base.process) if own else shared
        teachers[name], weights_of_it = make(on, **arguments)
        if isinstance(teachers[name], Adversary):
            _check_adversary(config, name, trajectories[name], adversary)
            adversary, start = name, weights_of_it
        else:
            frozen[name] = weights_of_it
    teachers, encoders, texts = read_texts(teachers, base.encoders)
    require_one_numbering(teachers)
    return Feedback(
        base=base,
        teachers=teachers,
        encoders=encoders,
        weights=weights,
        trajectories=trajectories,
        diffusion=section.diffusion,
        adversary_start=start,
        groups=base.groups,
        frozen={**frozen, **texts},
    )


def _trajectory(section: ConfigDict, process: GaussianProcess) -> Trajectory:
    return Trajectory(
        make_sampling(section.sampling, process),
        section.log_snr if section.start == "image" else None,
        section.latest,
        section.earliest,
        tuple(section.through),
        section.renoised,
    )


def _check_adversary(config: ConfigDict, name: str, path: Trajectory, other: str) -> None:
    """Raises UserError if a teacher cannot learn in this run."""
    if other:
        raise UserError(
            f"teachers.{other} and teachers.{name} are adversaries, and one can learn: leave the "
            "other out."
        )
    if make_adapters(config):
        raise UserError(
            f"teachers.{name} is an adversary, whose parameters are no part of an adapter: train "
            "without lora.rank, or with a frozen reward."
        )
    if path.through != (1, 1) or path.renoised:
        raise UserError(
            f"teachers.{name} is an adversary, which judges single predictions: set through to "
            "(1, 1) and renoised to 0 in its trajectory."
        )
    groups = list(config.groups)
    if groups != ["generator", ADVERSARY]:
        raise UserError(
            f"teachers.{name} is an adversary, and config.groups are {', '.join(groups)}: use "
            f"generator and {ADVERSARY}, in this order."
        )


def require_one_numbering(teachers: Mapping[str, Teacher]) -> None:
    """Raises UserError if teachers number the words of a column differently: a row has one."""
    found: dict[str, tuple[str, Column]] = {}
    for name, teacher in teachers.items():
        for column, vocabulary in teacher.columns.items():
            other, before = found.setdefault(column, (name, vocabulary))
            if vocabulary != before:
                raise UserError(
                    f"teachers.{name} and teachers.{other} number the words of the column {column} "
                    "differently: train both with the same classes and number of instances."
                )
