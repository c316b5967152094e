"""The two supported families of single files, and what their files do not contain: the config of
each component and the noise schedule, as in the published folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, unet
from emu_jax.text.clip import Clip
from emu_jax.text.pretrained import NO_FOLDER

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_FIRST_CLIP = "conditioner.embedders.0.transformer."
_SECOND_CLIP = "conditioner.embedders.1.model."
_CLIP = "cond_stage_model.transformer."
# A prefix of keys that only one other family has -> the name of the family.
_OTHERS = {
    "cond_stage_model.model.": "Stable Diffusion 2's, with OpenCLIP-H",
    "conditioner.embedders.0.model.": "Stable Diffusion XL's refiner",
    "control_model.": "a ControlNet",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3's",
    "model.diffusion_model.double_blocks.": "Flux's",
}


@dataclass(frozen=True)
class Family:
    """``settings``: component ("": model_index.json) -> its JSON file. ``prefixes``: component ->
    the prefix of its keys.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]]
    prefixes: Mapping[str, str]

    @property
    def text_encoders(self) -> list[str]:
        return [name for name in self.prefixes if name.startswith("text_encoder")]


def _text(size: str, kind: str) -> dict[str, Any]:
    config = Clip.config_of(NO_FOLDER, size)
    names = dict(architectures=[kind], model_type="clip_text_model", bos_token_id=49406)
    return config | names | dict(projection_dim=config["hidden_size"])


_VAE = autoencoder.DEFAULTS | dict(
    _class_name=autoencoder.CLASS,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    sample_size=512,
)
_NOISE = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=1,
)
SD15 = Family(
    "Stable Diffusion 1.5",
    {
        "": dict(_class_name="StableDiffusionPipeline"),
        "unet": unet.DEFAULTS
        | dict(_class_name=unet.CLASS, sample_size=64, cross_attention_dim=768),
        "vae": _VAE,
        "text_encoder": _text("vit_l", "CLIPTextModel"),
        "scheduler": _NOISE
        | dict(_class_name="PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False),
    },
    PREFIXES | {"text_encoder": _CLIP},
)
SDXL = Family(
    "Stable Diffusion XL base",
    {
        "": dict(_class_name="StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True),
        "unet": unet.DEFAULTS
        | dict(
            _class_name=unet.CLASS,
            sample_size=128,
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            block_out_channels=[320, 640, 1280],
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "vae": _VAE | dict(scaling_factor=0.13025, sample_size=1024),
        "text_encoder": _text("vit_l", "CLIPTextModel"),
        "text_encoder_2": _text("openclip_bigg", "CLIPTextModelWithProjection"),
        "scheduler": _NOISE | dict(_class_name="EulerDiscreteScheduler"),
    },
    PREFIXES | {"text_encoder": _FIRST_CLIP, "text_encoder_2": _SECOND_CLIP},
)


def family_of(file: Path, shapes: Mapping[str, Any]) -> Family:
    """The family of a file with these keys and shapes.

    Raises:
      UserError: another family, with its name if that is known.
    """
    known = f"supported are {SD15.name} and {SDXL.name}"
    starts = tuple(shapes)
    for prefix, name in _OTHERS.items():
        if any(key.startswith(prefix) for key in starts):
            raise UserError(f"{file} is {name}; {known}. Use its folder in diffusers' layout.")
    entry = shapes.get(PREFIXES["unet"] + "input_blocks.0.0.weight")
    if entry is None:
        raise UserError(
            f"{file} has no {PREFIXES['unet']}input_blocks, so it is not a whole model in the "
            "original layout; for a model in diffusers' layout name the folder."
        )
    for family in (SDXL, SD15):
        if not any(key.startswith(family.prefixes["text_encoder"]) for key in starts):
            continue
        channels = family.settings["unet"]["in_channels"]
        if entry.shape[1] != channels:
            raise UserError(
                f"{file} has {entry.shape[1]} input channels, not {channels}: it is a model for "
                f"inpainting or editing; {known}."
            )
        return family
    raise UserError(f"{file} contains no supported text encoder; {known}.")


def family_for(pipeline: str) -> Family:
    """The family of a class of pipelines.

    Raises:
      UserError: the class has no such family.
    """
    for family in (SDXL, SD15):
        if family.settings[""]["_class_name"] == pipeline:
            return family
    raise UserError(
        f"This is a {pipeline}; single files exist only for {SD15.name} and {SDXL.name}. Export it "
        "with --format=diffusers."
    )
