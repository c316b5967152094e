"""How the images of feedback learning come about."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from emu_jax.assembly.schema import Section, key
from emu_jax.assembly.sections.generation import Sampling


def _sampling() -> Sampling:
    return Sampling(sampler="ddim", steps=20, guidance_scale=1.0)


@dataclass(frozen=True, kw_only=True)
class Trajectory(Section):
    """Where sampling starts and where teachers look; :class:`emu_jax.tasks.feedback.Trajectory`."""

    sampling: Sampling = field(
        default_factory=_sampling, metadata=key(None, "How they are sampled.").metadata
    )
    start: Literal["image", "noise"] = key(
        "image", "Sampling starts from the row's noised image, or from pure noise."
    )
    log_snr: float = key(-0.96, "Log-SNR of the noised image; as UniFL's half of its steps.")
    latest: int = key(1, "Fewest steps before the end at which x0 is predicted.", at_least=1)
    earliest: int = key(5, "Most steps before the end.", at_least=1)
    through: tuple[int, int] = key(
        (1, 1),
        "Fewest and most calls that the gradient passes, ending with that of the prediction.",
        at_least=1,
    )
    renoised: int = key(
        0,
        "The prediction has no gradient: it is noised again so many times and predicted anew.",
        at_least=0,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.latest <= self.earliest <= self.sampling.steps:
            yield "earliest", f"from latest ({self.latest}) to sampling.steps"


@dataclass(frozen=True, kw_only=True)
class Teaching(Section):
    """What all teachers have."""

    weight: float = key(1.0, "Weight of its loss.", at_least=0)
    trajectory: Trajectory | None = key(
        None, "How its images come about; None: as config.feedback says."
    )
