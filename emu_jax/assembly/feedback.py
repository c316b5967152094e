"""From a config to feedback learning."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from emu_jax.assembly.generation import make_generation, make_sampling
from emu_jax.assembly.registry import TEACHERS
from emu_jax.assembly.rewards import read_texts
from emu_jax.data.mixture import Column
from emu_jax.errors import UserError
from emu_jax.parallel.placement import Placement
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.registry import loaded, look_up
from emu_jax.tasks.feedback import Feedback, Trajectory
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
    teachers, weights, frozen = {}, {}, dict(base.frozen)
    for name, entry in config.teachers.items():
        if name in frozen:
            raise UserError(
                f"teachers.{name} has the name of another frozen network: give it another."
            )
        arguments = entry.to_dict()
        make = loaded(look_up(TEACHERS, arguments.pop("kind"), f"teachers.{name}.kind"))
        weights[name] = arguments.pop("weight")
        teachers[name], frozen[name] = make(on, **arguments)
    require_one_numbering(teachers)
    teachers, encoders, texts = read_texts(teachers, base.encoders)
    return Feedback(
        base=base,
        teachers=teachers,
        encoders=encoders,
        weights=weights,
        trajectory=Trajectory(
            make_sampling(section.sampling, base.process),
            section.log_snr if section.start == "image" else None,
            section.latest,
            section.earliest,
            section.through,
            section.renoised,
        ),
        diffusion=section.diffusion,
        groups=base.groups,
        frozen={**frozen, **texts},
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
