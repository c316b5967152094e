"""Images that condition a generator beside its text: control, inpainting, editing.

They are further images of a row in training (:mod:`emu_jax.data.further`) and are given by the same
names in sampling. Their methods return entries of ``Conditions``:

    Control      "control": features of the hint, from which a ControlNet computes what is added to
                 the U-Net's skip connections in every call
    Inpainting   "spatial", concatenated to x: a mask (1: to be drawn), then the latents of the
                 image without what is to be drawn (Stable Diffusion's inpainting models)
    Editing      "spatial": the latents of the image before the edit, not normalized
                 (InstructPix2Pix, Brooks et al. 2022)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from emu_jax.data.further import is_labels
from emu_jax.errors import UserError
from emu_jax.nn.control import PREFIX
from emu_jax.nn.functional import Network, Params, subtree
from emu_jax.tasks.base import cast, to_unit_range
from emu_jax.tasks.codecs import LATENT_SCALE, LATENT_SHIFT, Codec

Images = Mapping[str, UInt8[Array, "b H W *k"]]  # by the name of a further image


@dataclass(frozen=True)
class Control:
    """A ControlNet; ``strength`` multiplies its residuals, and at 0 it is not computed."""

    network: Network
    hint: str
    strength: float = 1.0

    def conditions(self, params: Params, images: Images, dtype: Any) -> dict[str, Array]:
        """The features of the hints."""
        if not self.strength:
            return {}
        hint = images[self.hint].astype(jnp.float32) / 255
        network, hint = cast((subtree(params, PREFIX), hint), dtype)
        return {"control": self.network(network, hint, method="embed")}

    def residuals(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        features: Float[Array, "b h w d"],
        conditions: Mapping[str, Array],
    ) -> list[Float[Array, "b _ _ _"]]:
        """What is added to the U-Net, in the dtype of x."""
        network = cast(subtree(params, PREFIX), x.dtype)
        inputs: dict[str, Any] = dict(conditions)
        found = self.network(network, x, timestep, **inputs, hint=features)
        return [self.strength * residual for residual in found]


@dataclass(frozen=True)
class Inpainting:
    """What the mask marks (labels other than 0) is drawn anew."""

    further: ClassVar[tuple[str, ...]] = ("image", "mask")

    def channels(self, latent: int) -> int:
        """Channels of "spatial" for so many of the latents."""
        return 1 + latent

    def conditions(self, codec: Codec, params: Params, images: Images) -> dict[str, Array]:
        """The mask at the size of the latents, and the latents of the rest of the image."""
        mask = images["mask"][..., None] > 0
        known = jnp.where(mask, 0, to_unit_range(images["image"]))
        small = mask[:, :: codec.factor, :: codec.factor].astype(jnp.float32)
        mean = _mean(codec, codec.moments(params, known))
        if LATENT_SHIFT in params:
            mean = (mean - params[LATENT_SHIFT]) / params[LATENT_SCALE]
        return {"spatial": jnp.concatenate([small, mean], axis=-1)}


@dataclass(frozen=True)
class Editing:
    """Training drops a row's image, which is zeros then, at rate ``drop``."""

    further: ClassVar[tuple[str, ...]] = ("before",)
    drop: float = 0.05

    def channels(self, latent: int) -> int:
        """Channels of "spatial" for so many of the latents."""
        return latent

    def conditions(self, codec: Codec, params: Params, images: Images) -> dict[str, Array]:
        """The latents of the image before the edit."""
        moments = codec.moments(params, to_unit_range(images["before"]))
        return {"spatial": _mean(codec, moments)}


Spatial = Inpainting | Editing


def dropped(
    spatial: Spatial | None, key: jax.Array, conditions: dict[str, Array]
) -> dict[str, Array]:
    """Conditions in training: of editing some rows without their image."""
    if not isinstance(spatial, Editing) or not spatial.drop:
        return conditions
    image = conditions["spatial"]
    kept: Bool[Array, " b"] = jax.random.bernoulli(key, 1 - spatial.drop, image.shape[:1])
    return conditions | {"spatial": without_image(conditions, kept)["spatial"]}


def without_image(
    conditions: Mapping[str, Array], kept: Bool[Array, " b"] | None = None
) -> dict[str, Array]:
    """Conditions without the concatenated image, or with that of the rows in ``kept`` alone."""
    image = conditions["spatial"]
    blank = jnp.zeros_like(image)
    image = blank if kept is None else jnp.where(kept[:, None, None, None], image, blank)
    return {**conditions, "spatial": image}


def blank(names: tuple[str, ...], n: int, height: int, width: int) -> dict[str, Array]:
    """Black images of these names."""
    return {
        name: jnp.zeros((n, height, width) if is_labels(name) else (n, height, width, 3), jnp.uint8)
        for name in names
    }


def require_images(names: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Raises UserError unless exactly the images of these names are given."""
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(
            f"This model is conditioned on the image {missing[0]!r} beside the prompt, and none is "
            "given: name its file (docs/control.md)."
        )
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(
            f"This model takes no image {unknown[0]!r}; it takes "
            f"{', '.join(map(repr, names)) or 'none'}."
        )


def _mean(codec: Codec, moments: Float[Array, "b h w m"]) -> Float[Array, "b h w c"]:
    """The mean of moments, which are mean and variance, or pixels."""
    return moments[..., : codec.row(*moments.shape[1:3])[-1]]
