"""How a generator samples: the settings of sampling, the guidance that they ask for, and what
sampling starts from in place of noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.guidance import (
    Denoise,
    dynamic_threshold,
    guided,
    guided_by_image,
    rising,
    static_clip,
)
from emu_jax.process.protocol import Data, Process, Transform
from emu_jax.process.registry import Spacing
from emu_jax.process.self_attention import self_attention_guided
from emu_jax.tasks.image_conditions import Editing, Spatial, without_image

THRESHOLDS = ("none", "static", "dynamic")

# What the denoiser reads beside x and t: keyword -> array with the batch in front. The conditioner
# gives "context", "mask" and "vector"; a low-resolution image gives "spatial" (concatenated to x)
# and "level", or "low"; other images give "spatial" too, or "control" (features of the hint of a
# ControlNet, whose residuals are computed in each call). Further entries reach the denoiser under
# their own names.
Conditions = dict[str, Array]


class Start(NamedTuple):
    """What sampling starts from in place of noise: clean data, of which some may stay.

    ``keep`` is the share of each position that stays. ``skip`` is the number of sampling steps that
    are left out from the beginning: with none x0 matters only where it stays, with all of them it
    is the result.
    """

    x0: Data
    keep: Float[Array, "b h w"]
    skip: int = 0


@dataclass(frozen=True)
class Sampling:
    """How images are sampled: a sampler, its steps and their spacing, classifier-free guidance.

    ``image_guidance_scale``: classifier-free guidance by the image before an edit.
    ``guidance_ramp``: the guidance scale rises from 1 to its value during sampling. ``sag_scale``:
    the scale of self-attention guidance (``process.self_attention``), 0 for none.
    ``threshold`` keeps every predicted x0 within the range of pixels (``process.guidance``); the
    dynamic one uses the quantile ``threshold_quantile``, which is itself limited to
    ``threshold_limit`` (0: no limit).
    """

    sampler: Any
    steps: int = 25
    spacing: Spacing = "trailing"
    guidance_scale: float = 5.0
    image_guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_ramp: bool = False
    sag_scale: float = 0.0
    threshold: Literal["none", "static", "dynamic"] = "none"
    threshold_quantile: float = 0.995
    threshold_limit: float = 0.0

    def __post_init__(self):
        if self.threshold not in THRESHOLDS:
            raise UserError(
                f"sampling.threshold is {self.threshold!r}; use one of {', '.join(THRESHOLDS)}."
            )
        if not self.guidance_scale >= 0:
            raise UserError(f"sampling.guidance_scale is {self.guidance_scale}; use 0 or more.")
        if not self.image_guidance_scale >= 0:
            raise UserError(
                f"sampling.image_guidance_scale is {self.image_guidance_scale}; use 0 or more."
            )
        if not 0 <= self.sag_scale < float("inf"):
            raise UserError(f"sampling.sag_scale is {self.sag_scale}; use 0 or more.")
        if not 0 < self.threshold_quantile <= 1:
            raise UserError(
                f"sampling.threshold_quantile is {self.threshold_quantile}; use a value above 0 "
                "and at most 1."
            )
        if self.threshold_limit and self.threshold_limit < 1:
            raise UserError(
                f"sampling.threshold_limit is {self.threshold_limit}; use 0 (no limit) or 1 and "
                "above."
            )

    @property
    def transform(self) -> Transform | None:
        """The function of x0 that ``threshold`` names."""
        match self.threshold:
            case "static":
                return static_clip
            case "dynamic":
                return partial(
                    dynamic_threshold, quantile=self.threshold_quantile, limit=self.threshold_limit
                )
            case _:
                return None

    @property
    def calls(self) -> int:
        """Evaluations of the denoiser for one image; classifier-free guidance needs two at a time,
        self-attention guidance and guidance by an image one more each.
        """
        together = 1 if self.guidance_scale == self.image_guidance_scale == 1 else 2
        together += bool(self.sag_scale) + (self.image_guidance_scale != 1)
        return self.sampler.calls(self.steps) * together

    def guide(
        self,
        call: Callable[..., Any],
        process: Process,
        conditions: Conditions,
        null: Conditions | None,
        spatial: Spatial | None,
    ) -> Denoise:
        """``denoise(x, t)``: classifier-free guidance from ``null`` to ``conditions``, none if null
        is None; with self-attention guidance, and with guidance by the image of editing.

        ``call(x, timestep, conditions)`` evaluates the denoiser; ``attention=True`` returns the
        attention of its middle block too.
        """
        scale = rising(self.guidance_scale) if self.guidance_ramp else self.guidance_scale
        if self.sag_scale:
            assert isinstance(process, GaussianProcess), "tokens have no such guidance"

            def watched(x: Array, t: Array, conditions: Conditions) -> tuple[Array, Array]:
                return call(x, process.timestep_input(t), conditions, attention=True)

            return self_attention_guided(
                *(watched, process, conditions, null, self.sag_scale),
                *(scale, self.guidance_rescale),
            )

        def network(x: Array, t: Array, conditions: Conditions) -> Array:
            return call(x, process.timestep_input(t), conditions)

        if isinstance(spatial, Editing) and null and self.image_guidance_scale != 1:
            return guided_by_image(
                network,
                (conditions, null, without_image(null)),
                scale,
                self.image_guidance_scale,
                process.split_output,
            )
        return guided(network, conditions, null, scale, self.guidance_rescale, process.split_output)
