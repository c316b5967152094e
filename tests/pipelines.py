"""Small pipelines with random weights, written by diffusers and transformers themselves. A helper,
not a test.
"""

from functools import cache
from pathlib import Path

import diffusers
import encoders
import torch
from diffusers import (
    AutoencoderKL,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UVit2DModel,
    VQModel,
)
from transformers import CLIPTokenizer, T5Tokenizer

LENGTH = 20  # tokens, as the small encoders have it
NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TRAILING = dict(NOISE, timestep_spacing="trailing")
UNETS = {
    "sd15": dict(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=24,
    ),
    "sd21": dict(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": dict(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=24 + 32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    ),
}
VAES = {
    "sd15": dict(latent_channels=4),
    "sd21": dict(latent_channels=4),
    "sdxl": dict(latent_channels=4, scaling_factor=0.13025),
}
SCHEDULERS = {
    "sd15": diffusers.DDIMScheduler(
        **TRAILING, clip_sample=False, set_alpha_to_one=True, steps_offset=1
    ),
    "sd21": diffusers.DDIMScheduler(
        **TRAILING,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    ),
    "sdxl": diffusers.EulerDiscreteScheduler(**TRAILING),
}


CODES = 13
UVIT = dict(
    hidden_size=16,
    cond_embed_dim=10,
    micro_cond_encode_dim=4,
    micro_cond_embed_dim=20,
    encoder_hidden_size=24,
    vocab_size=CODES + 3,
    codebook_size=CODES,
    in_channels=6,
    block_out_channels=12,
    num_res_blocks=1,
    block_num_heads=3,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    sample_size=5,
)
VQ = dict(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=6,
    num_vq_embeddings=CODES,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
    sample_size=10,
)


PIXART = dict(
    num_attention_heads=3,
    attention_head_dim=8,
    num_layers=2,
    cross_attention_dim=24,
    caption_channels=24,
    sample_size=8,
    interpolation_scale=2,
    use_additional_conditions=False,
)


SD3 = dict(
    sample_size=8,
    patch_size=2,
    in_channels=6,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=3,
    joint_attention_dim=60,
    caption_projection_dim=24,
    pooled_projection_dim=26,
    out_channels=6,
    pos_embed_max_size=6,
)


IF_BASE = dict(
    sample_size=8,
    in_channels=3,
    out_channels=6,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    attention_head_dim=16,  # here it is the width of a head
    cross_attention_dim=32,
    encoder_hid_dim=24,
    addition_embed_type="text",
    addition_embed_type_num_heads=4,
    resnet_time_scale_shift="scale_shift",
    cross_attention_norm="group_norm",
    act_fn="gelu",
)
IF_SUPER = IF_BASE | dict(
    sample_size=32,
    in_channels=6,
    class_embed_type="timestep",
    time_embedding_act_fn="gelu",
    time_embedding_dim=48,
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
    only_cross_attention=True,
)
# Of the published pipelines; the sizes of the steps are the default, "leading".
IF_NOISE = dict(
    beta_schedule="squaredcos_cap_v2",
    variance_type="learned_range",
    thresholding=True,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=1.5,
)


def shaken(model, scale: float = 0.1):
    """Every parameter random, those that start at 0 or 1 too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def vae(**changes) -> AutoencoderKL:
    sizes = dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    return shaken(AutoencoderKL(**(sizes | changes)), 0.05)


@cache
def write(name: str, folder: Path) -> Path:
    """A pipeline of the kind ``name`` in ``folder`` / ``name``."""
    home = folder / name
    build_encoders(name, folder)
    encoder = lambda part: encoders_of(name)[part].from_pretrained(folder / f"{name}_{part}")  # noqa: E731
    tokenizer = lambda part: CLIPTokenizer.from_pretrained(folder / f"{name}_{part}")  # noqa: E731
    parts = dict(
        unet=shaken(UNet2DConditionModel(**UNETS[name])),
        vae=vae(**VAES[name]),
        scheduler=SCHEDULERS[name],
        text_encoder=encoder("text_encoder"),
        tokenizer=tokenizer("text_encoder"),
    )
    if name == "sdxl":
        parts |= dict(
            text_encoder_2=encoder("text_encoder_2"), tokenizer_2=tokenizer("text_encoder_2")
        )
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipeline = diffusers.StableDiffusionPipeline(**parts, **none)
    pipeline.save_pretrained(home)
    return home


@cache
def write_beside(kind: str, folder: Path) -> Path:
    """A pipeline of Stable Diffusion 1.5 with an image beside its latents, "inpainting" or
    "editing", in ``folder`` / ``kind``.
    """
    build_encoders("sd15", folder)
    text = folder / "sd15_text_encoder"
    classes = dict(
        inpainting=(diffusers.StableDiffusionInpaintPipeline, 9),
        editing=(diffusers.StableDiffusionInstructPix2PixPipeline, 8),
    )
    pipeline, channels = classes[kind]
    pipeline(
        unet=shaken(UNet2DConditionModel(**UNETS["sd15"], in_channels=channels)),
        vae=vae(latent_channels=4),
        scheduler=SCHEDULERS["sd15"],
        text_encoder=encoders_of("sd15")["text_encoder"].from_pretrained(text),
        tokenizer=CLIPTokenizer.from_pretrained(text),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / kind)
    return folder / kind


@cache
def write_amused(folder: Path) -> Path:
    """An AmusedPipeline that draws 10 x 10 pixels as 5 x 5 tokens, in ``folder`` / "amused"."""
    text = folder / "amused_text_encoder"
    torch.manual_seed(0)  # networks are drawn before they are shaken
    encoder = encoders.clip_text(text, projection=True)
    _limit(text)
    vq = shaken(VQModel(**VQ), 0.1)
    with torch.no_grad():  # near enough to one another that pictures have all codes
        vq.quantize.embedding.weight.mul_(3)
    pipeline = diffusers.AmusedPipeline(
        vqvae=vq,
        tokenizer=CLIPTokenizer.from_pretrained(text),
        text_encoder=encoder,
        transformer=shaken(UVit2DModel(**UVIT), 0.2),
        scheduler=diffusers.AmusedScheduler(mask_token_id=UVIT["vocab_size"] - 1),
    )
    pipeline.save_pretrained(folder / "amused")
    return folder / "amused"


@cache
def write_pixart(folder: Path) -> Path:
    """A PixArtSigmaPipeline that draws 16 x 16 pixels, in ``folder`` / "pixart"."""
    text = folder / "pixart_text_encoder"
    encoder = encoders.t5(text)
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=T5Tokenizer.from_pretrained(text),
        text_encoder=encoder,
        vae=vae(latent_channels=4, scaling_factor=0.13025),
        transformer=shaken(PixArtTransformer2DModel(**PIXART), 0.2),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=1e-4, beta_end=0.02
        ),
    )
    pipeline.save_pretrained(folder / "pixart")
    return folder / "pixart"


@cache
def write_sd3(folder: Path) -> Path:
    """A StableDiffusion3Pipeline that draws 16 x 16 pixels, in ``folder`` / "sd3"."""
    texts = [folder / f"sd3_text_encoder{i}" for i in ("", "_2", "_3")]
    sizes = dict(hidden_size=32, num_attention_heads=4, hidden_act="gelu", projection_dim=16)
    first = encoders.clip_text(texts[0], projection=True)
    second = encoders.clip_text(texts[1], projection=True, pad="!", **sizes)
    for text in texts[:2]:
        _limit(text)
    wide = vae(
        **dict(latent_channels=6, scaling_factor=1.5305, shift_factor=0.0609),
        **dict(use_quant_conv=False, use_post_quant_conv=False),
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=shaken(SD3Transformer2DModel(**SD3), 0.2),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=wide,
        text_encoder=first,
        tokenizer=CLIPTokenizer.from_pretrained(texts[0]),
        text_encoder_2=second,
        tokenizer_2=CLIPTokenizer.from_pretrained(texts[1]),
        text_encoder_3=encoders.t5(texts[2], d_model=60),
        tokenizer_3=T5Tokenizer.from_pretrained(texts[2]),
    )
    pipeline.save_pretrained(folder / "sd3")
    return folder / "sd3"


@cache
def write_if(folder: Path, kind: str) -> Path:
    """An IFPipeline that draws 8 x 8 pixels, or the IFSuperResolutionPipeline that makes 32 x 32 of
    them, in ``folder`` / ``kind``.
    """
    text = folder / f"{kind}_text_encoder"
    parts = dict(text_encoder=encoders.t5(text), tokenizer=T5Tokenizer.from_pretrained(text))
    parts |= dict(safety_checker=None, feature_extractor=None, watermarker=None)
    if kind == "IFPipeline":
        unet, changes = IF_BASE, {}
    else:  # noise of another kind than that in the picture
        unet, changes = IF_SUPER, dict(beta_schedule="linear")
        noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        parts |= dict(image_noising_scheduler=noising)
    pipeline = getattr(diffusers, kind)(
        # Gently: early steps divide what rounding leaves by a small alpha, and guidance adds to it.
        unet=shaken(UNet2DConditionModel(**unet), 0.05),
        scheduler=diffusers.DDPMScheduler(**(IF_NOISE | changes)),
        requires_safety_checker=False,
        **parts,
    )
    pipeline.save_pretrained(folder / kind)
    return folder / kind


def encoders_of(name: str) -> dict:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    found = dict(text_encoder=CLIPTextModel)
    return found | (dict(text_encoder_2=CLIPTextModelWithProjection) if name == "sdxl" else {})


def build_encoders(name: str, folder: Path) -> None:
    """CLIP folders of the sizes that the U-Nets ask for, with tokenizers of the right length."""
    sizes = dict(hidden_size=32, num_attention_heads=4, hidden_act="gelu", projection_dim=16)
    first = folder / f"{name}_text_encoder"
    encoders.clip_text(first, **(sizes if name == "sd21" else {}))
    _limit(first)
    if name == "sdxl":
        second = folder / f"{name}_text_encoder_2"
        encoders.clip_text(second, projection=True, pad="!", **sizes)
        _limit(second)


def _limit(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(
        file.read_text().replace('"model_max_length": 77', f'"model_max_length": {LENGTH}')
    )
