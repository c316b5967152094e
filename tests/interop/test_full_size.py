"""The public configs at full size, by shape alone: every tensor of diffusers' class has a home in
ours, and every parameter of ours is there. The settings are those of the published config.json.
"""

import math
from functools import cache
from pathlib import Path

import encoders
import jax
import numpy as np
import original_layout
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UVit2DModel,
    VQModel,
)
from diffusers.loaders import single_file_utils as theirs
from ml_collections import ConfigDict
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from emu_jax.assembly import importing
from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.interop import autoencoder, control, deepfloyd, pixart, sd3, unet, uvit, vq
from emu_jax.interop import single_file_families as families
from emu_jax.interop.components import Imported, import_autoencoder, import_vq
from emu_jax.interop.single_file import keys_of, parts_of
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.control import ControlNet
from emu_jax.nn.functional import Network
from emu_jax.nn.mmdit import MMDiT
from emu_jax.nn.pixart import PixArt
from emu_jax.nn.torch_layout import torch_paths
from emu_jax.nn.unet import UNet
from emu_jax.nn.uvit import UVit
from emu_jax.tasks.generation import Generation

SD15 = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280],
    cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    layers_per_block=2,
    norm_eps=1e-05,
    norm_num_groups=32,
)
SD21 = SD15 | dict(
    sample_size=96,
    attention_head_dim=[5, 10, 20, 20],
    cross_attention_dim=1024,
    use_linear_projection=True,
    upcast_attention=True,
)
SDXL = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    attention_head_dim=[5, 10, 20],
    block_out_channels=[320, 640, 1280],
    cross_attention_dim=2048,
    transformer_layers_per_block=[1, 2, 10],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
# DeepFloyd IF's first stage, whose head_dim is the width of a head.
IF_XL = dict(
    sample_size=64,
    in_channels=3,
    out_channels=6,
    attention_head_dim=64,
    block_out_channels=[704, 1408, 2112, 2816],
    cross_attention_dim=2816,
    down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    layers_per_block=3,
    encoder_hid_dim=4096,
    addition_embed_type="text",
    addition_embed_type_num_heads=64,
    resnet_time_scale_shift="scale_shift",
    cross_attention_norm="group_norm",
    act_fn="gelu",
)
# The structure of its second stage, in Imagen's widths.
IF_SUPER = IF_XL | dict(
    sample_size=256,
    in_channels=6,
    block_out_channels=[128, 256, 512, 1024],
    cross_attention_dim=1024,
    down_block_types=["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"],
    up_block_types=["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * 3,
    layers_per_block=[2, 4, 8, 8],
    class_embed_type="timestep",
    time_embedding_dim=1024,
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
    only_cross_attention=True,
)
UNETS = dict(sd15=SD15, sd21=SD21, sdxl=SDXL, if_xl=IF_XL, if_super=IF_SUPER)
SD_VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
VAES = dict(
    sd=SD_VAE,
    sdxl=SD_VAE | dict(scaling_factor=0.13025, sample_size=1024),
    # 16 channels, shifted, without 1 x 1 convolutions at the latents.
    wide=SD_VAE
    | dict(
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
)

# PixArt-Sigma XL/2 of 1024 pixels.
PIXART = dict(
    activation_fn="gelu-approximate",
    attention_bias=True,
    attention_head_dim=72,
    attention_type="default",
    caption_channels=4096,
    cross_attention_dim=1152,
    dropout=0.0,
    in_channels=4,
    interpolation_scale=2,
    norm_elementwise_affine=False,
    norm_eps=1e-06,
    norm_num_groups=32,
    norm_type="ada_norm_single",
    num_attention_heads=16,
    num_embeds_ada_norm=1000,
    num_layers=28,
    out_channels=8,
    patch_size=2,
    sample_size=128,
    upcast_attention=False,
    use_additional_conditions=False,
)

# Stable Diffusion 3 medium.
SD3 = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=192,
)

AMUSED256 = dict(
    hidden_size=1024,
    cond_embed_dim=768,
    micro_cond_encode_dim=256,
    micro_cond_embed_dim=1280,
    encoder_hidden_size=768,
    vocab_size=8256,
    codebook_size=8192,
    in_channels=768,
    block_out_channels=768,
    num_res_blocks=3,
    downsample=False,
    upsample=False,
    block_num_heads=12,
    num_hidden_layers=22,
    num_attention_heads=16,
    intermediate_size=2816,
    layer_norm_eps=1e-06,
    use_bias=False,
    ln_elementwise_affine=True,
)
AMUSED = dict(amused256=AMUSED256, amused512=AMUSED256 | dict(downsample=True, upsample=True))
AMUSED_VQ = dict(
    block_out_channels=[128, 256, 256, 512, 768],
    down_block_types=["DownEncoderBlock2D"] * 5,
    up_block_types=["UpDecoderBlock2D"] * 5,
    layers_per_block=2,
    latent_channels=64,
    num_vq_embeddings=8192,
    mid_block_add_attention=False,
    lookup_from_codebook=True,
    force_upcast=True,
)


def network(kind, arguments: dict) -> Network:
    return Network(lambda rngs: kind(**arguments, rngs=rngs))


def skeleton(kind, config: dict) -> dict:
    """The state dict of diffusers' class, without memory for it."""
    with torch.device("meta"):
        return kind(**config).state_dict()


@cache
def unet_shapes(name: str) -> dict:
    """Of the denoiser that a public config becomes."""
    return network(UNet, unet.arguments(UNETS[name])).shapes()


@pytest.mark.parametrize("name", UNETS)
def test_every_tensor_of_a_public_unet_has_a_home(name):
    config = UNETS[name]
    arguments = unet.arguments(config)
    shapes, public = unet_shapes(name), skeleton(UNet2DConditionModel, config)
    assert len(torch_paths(public, shapes)) == len(shapes) == len(public)
    assert unet.arguments(unet.to_config(arguments)) == arguments
    back = skeleton(UNet2DConditionModel, public_arguments(unet.to_config(arguments)))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in public.items()}


@pytest.mark.parametrize(("name", "millions"), [("sd15", 361), ("sdxl", 1251)])
def test_every_tensor_of_a_public_control_network_has_a_home(name, millions):
    config = {key: x for key, x in UNETS[name].items() if key in control.DEFAULTS}
    arguments, own = control.arguments(config)
    shapes, public = (
        network(ControlNet, arguments | own).shapes(),
        skeleton(ControlNetModel, config),
    )
    assert len(torch_paths(public, shapes)) == len(shapes) == len(public)
    assert sum(math.prod(x.shape) for x in shapes.values()) // 10**6 == millions
    assert control.arguments(control.to_config(arguments, own)) == (arguments, own)


@pytest.mark.parametrize("name", VAES)
def test_every_tensor_of_a_public_autoencoder_has_a_home(name):
    config = VAES[name]
    arguments = autoencoder.arguments(config)
    shapes, public = network(Autoencoder, arguments).shapes(), skeleton(AutoencoderKL, config)
    assert len(torch_paths(public, shapes)) == len(shapes) == len(public)
    figures = autoencoder.latent_figures(config)
    written = autoencoder.to_config(arguments, *figures, config["sample_size"])
    assert {k: v for k, v in written.items() if k in config} == config
    assert all(map(np.array_equal, autoencoder.latent_figures(written), figures))
    assert public_arguments(written).keys() == autoencoder.DEFAULTS.keys()


@pytest.mark.parametrize("size", ["sd15", "sd21", "sdxl"])
def test_the_config_of_that_size_has_this_denoiser(size):
    """So ``init_from`` an import fills every parameter of a tuning run."""
    config = read(f"configs/latent_diffusion.py:size={size},stage=quality_tune")
    with config.unlocked():
        config.codec.path = "configs/autoencoder.py:size=f8"
        config.denoiser.scan = False
    task = make_task(config)
    assert isinstance(task, Generation) and not task.conditioner.shapes()
    own, shapes = task.denoiser.shapes(), unet_shapes(size)
    assert own.keys() == shapes.keys()
    different = {path for path in own if own[path].shape != shapes[path].shape}
    ends = {"conv_in/kernel", "conv_out/kernel", "conv_out/bias"}
    assert different == ends  # 16 latent channels in the codec above, 4 in the public one
    assert sum(math.prod(x.shape) for x in shapes.values()) > 8e8


@pytest.mark.parametrize(("kind", "dropped"), [(deepfloyd.BASE, True), (deepfloyd.SUPER, False)])
def test_the_generator_that_an_if_pipeline_becomes_has_its_tensors(kind, dropped, monkeypatch):
    """With T5-XXL, by the config that is written of it; and it is that pipeline again."""
    name = "if_xl" if kind == deepfloyd.BASE else "if_super"
    public = skeleton(UNet2DConditionModel, UNETS[name])
    noise = dict(_class_name="DDPMScheduler", beta_schedule="squaredcos_cap_v2")
    files = dict(
        unet=UNETS[name],
        scheduler=noise | dict(variance_type="learned_range", thresholding=True),
        image_noising_scheduler=noise,
        text_encoder=dict(d_model=4096),
    )

    class Shapes:
        where = staticmethod(lambda name="": "x")
        settings = staticmethod(lambda name="", file="": files[name])

        @staticmethod
        def weights(name="", stem=""):
            shapes = {k: jax.ShapeDtypeStruct(v.shape, np.float16) for k, v in public.items()}
            return Lazy(shapes, pytest.fail)

    monkeypatch.setattr(deepfloyd, "import_text_encoder", lambda *told: None)
    t5 = dict(text_encoder=["transformers", "T5EncoderModel"])
    index = dict(t5, _class_name=kind, tokenizer=["transformers", "T5Tokenizer"])
    found = deepfloyd.import_pixels(Shapes(), index, Path("x"), dropped)
    config = ConfigDict(importing.generator_config(found.sections, "bfloat16"))
    assert deepfloyd.pipeline_of(config.to_dict()) == kind
    assert config.text.t5.dtype == "bfloat16"
    config.text.t5.update(dict(path="", size="xxl"))
    task = make_task(config)
    assert isinstance(task, Generation) and not task.conditioner.shapes()
    own = {f"denoiser/{path}": x.shape for path, x in task.denoiser.shapes().items()}
    assert own == {path: x.shape for path, x in found.params.shapes.items()}
    assert len(own) == len(public)
    assert own["denoiser/conv_out/bias"] == ((3,) if dropped else (6,))
    assert task.process.variance == ("fixed" if dropped else "learned_range")


@pytest.mark.parametrize("size", AMUSED)
def test_every_tensor_of_amuseds_transformer_has_a_home_and_its_size_in_our_config(size):
    config = AMUSED[size]
    arguments = uvit.arguments(config)
    shapes, public = network(UVit, arguments).shapes(), skeleton(UVit2DModel, config)
    assert len(torch_paths(public, shapes)) == len(shapes) == len(public)
    written = uvit.to_config(arguments, 256)
    assert {k: v for k, v in written.items() if k in config} == config
    assert public_arguments(written).keys() == uvit.DEFAULTS.keys()
    back = skeleton(UVit2DModel, public_arguments(written))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in public.items()}

    ours = read(f"configs/masked.py:size={size},stage=quality_tune")
    ours.denoiser.scan = False
    task = make_task(ours)
    assert isinstance(task, Generation) and not task.conditioner.shapes()
    own = task.denoiser.shapes()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in shapes.items()}
    count = sum(math.prod(x.shape) for x in shapes.values())
    assert count == sum(math.prod(x.shape) for x in public.values())
    print(size, f"{count:,}")
    assert (
        task.codec.row(*(ours.data.image_size // task.codec.factor,) * 2)
        == {
            "amused256": (16, 16),
            "amused512": (32, 32),
        }[size]
    )


# Our network, its translation, the public class and config, the size of our config.
TRANSFORMERS = dict(
    pixart_sigma=(PixArt, pixart, PixArtTransformer2DModel, PIXART),
    sd3=(MMDiT, sd3, SD3Transformer2DModel, SD3),
)


@pytest.mark.parametrize("size", TRANSFORMERS)
def test_every_tensor_of_a_public_transformer_has_a_home_and_its_size_in_our_config(size):
    own, translation, theirs, config = TRANSFORMERS[size]
    arguments = translation.arguments(config)
    shapes, public = network(own, arguments).shapes(), skeleton(theirs, config)
    assert len(torch_paths(public, shapes)) == len(shapes) == len(public)
    written = translation.to_config(arguments, 128)
    assert {k: v for k, v in written.items() if k in config} == config
    assert public_arguments(written).keys() == translation.DEFAULTS.keys()
    back = skeleton(theirs, public_arguments(written))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in public.items()}
    assert translation.measured(shapes).items() <= arguments.items()
    print(size, f"{sum(math.prod(x.shape) for x in shapes.values()):,}")

    ours = read(f"configs/latent_diffusion.py:size={size},stage=quality_tune")
    ours.denoiser.scan = False
    task = make_task(ours)
    assert isinstance(task, Generation) and not task.conditioner.shapes()
    made = task.denoiser.shapes()
    assert made.keys() == shapes.keys()
    # 16 latent channels in the codec of that config, which PixArt's public one has not.
    ends = {"pos_embed/proj/kernel", "proj_out/kernel", "proj_out/bias"}
    different = {path for path in made if made[path].shape != shapes[path].shape}
    assert different == (ends if size == "pixart_sigma" else set())


def test_every_tensor_of_amuseds_autoencoder_has_a_home():
    public = skeleton(VQModel, AMUSED_VQ)

    class Shapes:
        where = staticmethod(lambda name="": "x")
        settings = staticmethod(lambda name="": AMUSED_VQ)

        @staticmethod
        def weights(name=""):
            shapes = {
                k: jax.ShapeDtypeStruct(tuple(v.shape), np.float16) for k, v in public.items()
            }
            return Lazy(shapes, pytest.fail)

    found = import_vq(Shapes())
    assert isinstance(found, Imported) and len(found.params) == len(public)
    written = vq.to_config(found.sections, 32)
    assert {k: v for k, v in written.items() if k in AMUSED_VQ} == AMUSED_VQ
    assert public_arguments(written).keys() == vq.DEFAULTS.keys()


def public_arguments(config: dict) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_tensor_of_a_single_file_has_a_home(name, tmp_path):
    """As diffusers' converters and the public classes have it, nothing of it read."""
    family = dict(sd15=families.SD15, sdxl=families.SDXL)[name]
    settings = family.settings
    assert UNETS[name].items() <= settings["unet"].items()
    assert VAES[dict(sd15="sd").get(name, name)].items() <= settings["vae"].items()
    keys = original_layout.whole(settings)
    empty = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    wanted = dict(
        unet=theirs.convert_ldm_unet_checkpoint(empty, settings["unet"]),
        vae=theirs.convert_ldm_vae_checkpoint(empty, settings["vae"]),
        text_encoder=theirs.convert_ldm_clip_checkpoint(empty),
    )
    assert wanted["text_encoder"].pop("text_model.embeddings.position_ids").shape == (1, 77)
    if name == "sdxl":
        config = CLIPTextConfig(**settings["text_encoder_2"])
        with torch.device("meta"):
            second = CLIPTextModelWithProjection(config)
        found = theirs.convert_open_clip_checkpoint(second, empty, original_layout.OPENCLIP)
        assert found.keys() == second.state_dict().keys()
        wanted["text_encoder_2"] = found

    encoders.clip_tokenizer(tmp_path)
    shapes = {key: jax.ShapeDtypeStruct(shape, np.float16) for key, shape in keys.items()}
    parts = parts_of(tmp_path / "x", Lazy(shapes, lambda key: pytest.fail(key)), str(tmp_path))
    for part, state in wanted.items():
        own = {key: x.shape for key, x in parts.weights(part).shapes.items()}
        assert own == {key: tuple(x.shape) for key, x in state.items()}, part
        # And back: every key of the file but the constants.
        back = keys_of(part, settings[part]).originals(parts.weights(part)).shapes
        prefix = family.prefixes[part]
        found = {prefix + key: x.shape for key, x in back.items()}
        assert found.items() <= keys.items()
        aside = ("position_ids", "logit_scale")
        assert found.keys() == {k for k in keys if k.startswith(prefix) and not k.endswith(aside)}
    assert len(torch_paths(parts.weights("unet").shapes, unet_shapes(name))) == len(wanted["unet"])
    import_autoencoder(parts, "vae")  # refuses what does not fit
