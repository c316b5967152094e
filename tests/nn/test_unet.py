"""The U-Net against diffusers' UNet2DConditionModel, and the published models' sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.torch_layout import to_torch
from emu_jax.nn.unet import UNet

SD15 = dict(
    in_channels=4,
    out_channels=4,
    widths=(320, 640, 1280, 1280),
    transformer_depth=(1, 1, 1, 0),
    heads=8,
    context_width=768,
    linear_projection=False,
)
SD21 = SD15 | dict(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)
SDXL = dict(
    in_channels=4,
    out_channels=4,
    widths=(320, 640, 1280),
    transformer_depth=(0, 2, 10),
    mid_depth=10,
    head_width=64,
    context_width=2048,
    vector_width=2816,
)
# DeepFloyd IF-I-XL, its base, and IF-II's structure.
IF_BASE = dict(
    in_channels=3,
    out_channels=6,
    widths=(704, 1408, 2112, 2816),
    blocks=3,
    transformer_depth=(0, 1, 1, 1),
    head_width=64,
    context_width=2816,
    text_width=4096,
    text_pool_heads=64,
    attention="added_kv",
    context_norm=True,
    resample="resnet",
    scale_shift=True,
    act="gelu",
)

# The same structures, small: what ours and diffusers' constructors are told.
SMALL = {
    "sd15": (
        dict(SD15, widths=(32, 64, 64), transformer_depth=(1, 1, 0), heads=2, context_width=24),
        dict(
            block_out_channels=(32, 64, 64),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=24,
        ),
    ),
    "sd21": (
        dict(SD21, widths=(32, 96), transformer_depth=(1, 0), heads=(1, 3), context_width=24),
        dict(
            block_out_channels=(32, 96),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 3),
            cross_attention_dim=24,
            use_linear_projection=True,
        ),
    ),
    "sdxl": (
        dict(
            SDXL,
            widths=(32, 64, 96),
            transformer_depth=(0, 1, 2),
            mid_depth=2,
            head_width=16,
            context_width=24,
            vector_width=20 + 6 * 8,
        ),
        dict(
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 6),
            cross_attention_dim=24,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
    ),
    "uneven": (
        dict(SD15, widths=(32, 64), blocks=(1, 3), transformer_depth=(0, 1), context_width=24),
        dict(
            block_out_channels=(32, 64),
            layers_per_block=(1, 3),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            cross_attention_dim=24,
        ),
    ),
    "only_cross_attention": (
        dict(
            SD21,
            widths=(32, 64),
            transformer_depth=1,
            heads=4,
            context_width=24,
            only_cross_attention=(True, False),
        ),
        dict(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            attention_head_dim=4,
            cross_attention_dim=24,
            use_linear_projection=True,
            only_cross_attention=(True, False),
        ),
    ),
    "if_base": (
        dict(
            IF_BASE,
            widths=(32, 64, 96),
            transformer_depth=(0, 1, 1),
            blocks=2,
            head_width=16,
            context_width=32,
            text_width=64,
            text_pool_heads=4,
        ),
        dict(
            in_channels=3,
            out_channels=6,
            block_out_channels=(32, 64, 96),
            down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
            layers_per_block=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            encoder_hid_dim=64,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_time_scale_shift="scale_shift",
            cross_attention_norm="group_norm",
            act_fn="gelu",
        ),
    ),
    "if_super_resolution": (
        dict(
            IF_BASE,
            in_channels=6,
            widths=(32, 64, 96),
            transformer_depth=(0, 0, 1),
            blocks=(1, 2, 3),
            head_width=16,
            context_width=32,
            text_width=64,
            text_pool_heads=4,
            time_width=48,
            level=True,
            only_cross_attention=True,
            output_scale_factor=1 / 0.7071,
        ),
        dict(
            in_channels=6,
            out_channels=6,
            block_out_channels=(32, 64, 96),
            down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2,
            layers_per_block=(1, 2, 3),
            attention_head_dim=16,
            cross_attention_dim=32,
            encoder_hid_dim=64,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            class_embed_type="timestep",
            time_embedding_dim=48,
            time_embedding_act_fn="gelu",
            resnet_skip_time_act=True,
            resnet_out_scale_factor=1 / 0.7071,
            mid_block_scale_factor=1 / 0.7071,
            only_cross_attention=True,
            resnet_time_scale_shift="scale_shift",
            cross_attention_norm="group_norm",
            act_fn="gelu",
        ),
    ),
}


def network(config: dict) -> Network:
    return Network(lambda rngs: UNet(**config, rngs=rngs))


def compiled(net: Network):
    """Jitted, with little spent on optimising what runs once."""
    return jax.jit(net, compiler_options={"xla_backend_optimization_level": 0})


def reference(config: dict) -> UNet2DConditionModel:
    """diffusers' U-Net with every parameter random, those that start at 0 or 1 too."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


# diffusers masks neither IF's pooling nor an only-cross attention.
@pytest.mark.parametrize(
    "name, masked, size",
    [
        ("sd15", True, (8, 8)),
        ("sd15", False, (6, 9)),
        ("sd21", True, (8, 8)),
        ("sdxl", True, (8, 8)),
        ("uneven", True, (8, 8)),
        ("only_cross_attention", False, (8, 8)),
        ("if_base", False, (8, 8)),
        ("if_super_resolution", False, (8, 8)),
    ],
)
def test_equals_diffusers(name: str, masked: bool, size: tuple[int, int]):
    ours, theirs = SMALL[name]
    model = reference(theirs)
    net = network(ours)
    params = from_torch({k: v.numpy() for k, v in model.state_dict().items()}, net.shapes())

    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x = draw(2, *size, ours["in_channels"])
    t = np.array([7.0, 801.0], np.float32)
    context = draw(2, 5, ours.get("text_width") or ours["context_width"])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool) if masked else None
    vector = level = None
    told = {}
    if "vector_width" in ours:
        pooled, sizes = draw(2, 20), np.abs(draw(2, 6)) * 100
        told["added_cond_kwargs"] = {
            "text_embeds": torch.tensor(pooled),
            "time_ids": torch.tensor(sizes),
        }
        angles = sizes[..., None] * 10_000.0 ** (-np.arange(4) / 4)
        features = np.concatenate([np.cos(angles), np.sin(angles)], -1).reshape(2, -1)
        vector = np.concatenate([pooled, features], -1).astype(np.float32)
    if "level" in ours:
        level = np.array([250.0, 30.0], np.float32)
        told["class_labels"] = torch.tensor(level)
    with torch.no_grad():
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            torch.tensor(context),
            encoder_attention_mask=None if mask is None else torch.tensor(mask),
            **told,
        ).sample.permute(0, 2, 3, 1)
    actual = compiled(net)(params, x, t, context, mask, vector, level=level)
    assert np.std(expected.numpy()) > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)
    back = to_torch(params)
    assert all(np.array_equal(back[k], v.numpy()) for k, v in model.state_dict().items())


def control(ours: dict, size: int = 8) -> tuple:
    """Inputs, and residuals as a ControlNet gives them: one per skip connection and the last."""
    rng = np.random.default_rng(2)
    widths, blocks = ours["widths"], ours.get("blocks", 2)
    shapes, side = [(size, widths[0])], size
    for i, width in enumerate(widths):
        shapes += [(side, width)] * blocks
        if i < len(widths) - 1:
            side //= 2
            shapes.append((side, width))
    shapes.append((side, widths[-1]))
    residuals = [rng.standard_normal((2, s, s, width), np.float32) for s, width in shapes]
    return inputs(ours, size), residuals


def test_residuals_are_added_as_diffusers_adds_a_controlnets():
    ours, theirs = SMALL["sd15"]
    model, net = reference(theirs), network(ours)
    params = from_torch({k: v.numpy() for k, v in model.state_dict().items()}, net.shapes())
    (x, t, context), residuals = control(ours)
    *down, mid = (torch.tensor(r).permute(0, 3, 1, 2) for r in residuals)
    with torch.no_grad():
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            torch.tensor(context),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample.permute(0, 2, 3, 1)
    call = compiled(net)
    actual = call(params, x, t, context, residuals=residuals)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)
    plain = call(params, x, t, context)
    assert np.std(plain - actual) > 0.1
    zeros = jax.tree.map(np.zeros_like, residuals)
    np.testing.assert_array_equal(call(params, x, t, context, residuals=zeros), plain)


def test_residuals_of_another_architecture_are_refused():
    (x, t, context), residuals = control(TINY)
    net = network(TINY)
    with pytest.raises(UserError, match="takes 5 residuals, not 4"):
        jax.eval_shape(net, net.shapes(), x, t, context, residuals=residuals[1:])


@pytest.mark.parametrize(
    "config, parameters", [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)]
)
def test_published_sizes_by_shape_alone(config: dict, parameters: int):
    assert sum(math.prod(s.shape) for s in network(config).shapes().values()) == parameters


# The least that has a stage with attention and one without.
TINY = dict(
    in_channels=4,
    out_channels=4,
    widths=(32, 64),
    blocks=1,
    transformer_depth=(1, 0),
    mid_depth=0,
    heads=2,
    context_width=24,
)
TINY_ADDED_KV = TINY | dict(attention="added_kv")


def random_params(config: dict) -> dict:
    rng = np.random.default_rng(0)
    shapes = network(config).shapes()
    return {k: 0.1 * rng.standard_normal(s.shape, np.float32) for k, s in shapes.items()}


def inputs(config: dict, size: int = 8) -> tuple:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, size, size, config["in_channels"]), np.float32)
    width = config.get("text_width") or config["context_width"]
    return x, np.array([3.0, 700.0], np.float32), rng.standard_normal((2, 5, width), np.float32)


@pytest.mark.parametrize("config", [TINY, TINY_ADDED_KV, TINY_ADDED_KV | dict(text_pool_heads=2)])
def test_masked_tokens_are_never_seen(config: dict):
    net, params = compiled(network(config)), random_params(config)
    x, t, context = inputs(config)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    garbage = np.where(mask[..., None], context, 1e3 * context).astype(np.float32)
    np.testing.assert_array_equal(
        net(params, x, t, context, mask), net(params, x, t, garbage, mask)
    )
    everything = np.ones_like(mask)
    assert not np.array_equal(
        net(params, x, t, context, everything), net(params, x, t, garbage, everything)
    )


def test_a_fresh_network_says_zero_and_its_blocks_are_identities():
    params = network(TINY).init(jax.random.key(0))
    zero = {path for path, value in params.items() if not value.any() and path.endswith("kernel")}
    assert zero == {
        p
        for p in params
        if p.endswith(("conv2/kernel", "proj_out/kernel")) or p == "conv_out/kernel"
    }
    assert not np.any(compiled(network(TINY))(params, *inputs(TINY)))


def test_computes_in_bf16_and_close_to_fp32():
    net, params, (x, t, context) = network(TINY), random_params(TINY), inputs(TINY)
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)  # noqa: E731
    full = compiled(net)(params, x, t, context)
    low = compiled(net)(half(params), half(x), t, half(context))
    assert low.dtype == jnp.bfloat16
    error = np.abs(np.asarray(low, np.float32) - full)
    assert error.mean() < 0.05 * np.std(full)


def test_every_attention_is_the_one_handed_in():
    calls = []

    def count(q, k, v, mask):
        calls.append((q.shape, k.shape, mask is not None))
        return jnp.zeros_like(q)

    net = network(TINY | dict(attend=count))
    jax.eval_shape(net, net.shapes(), *inputs(TINY), np.ones((2, 5), bool))
    # Down block and two up blocks of the finer stage; 8 x 8 pixels, 5 tokens.
    pixels = ((2, 64, 2, 16), (2, 64, 2, 16), False)
    tokens = ((2, 64, 2, 16), (2, 5, 2, 16), True)
    assert calls == [pixels, tokens] * 3


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(heads=None), "exactly one"),
        (dict(heads=5), "do not divide into 5 heads"),
        (dict(blocks=(1, 2, 3)), "blocks has 3 values, but the U-Net has 2 stages"),
        (dict(context_width=None, attention="added_kv"), "give context_width"),
        (dict(vector_width=8, text_pool_heads=2), "not both"),
        (dict(attention="added_kv", mid_depth=2), "0 or 1"),
        (dict(attention="added_kv", scan=True), "use scan=False"),
        (dict(remat="full"), "'full'; choose one of none, block, dots"),
        (dict(act="swish"), "'swish'"),
        (dict(groups=5), "5 norm groups"),
    ],
)
def test_refuses_what_cannot_be(change: dict, words: str):
    with pytest.raises(UserError, match=words):
        network(TINY | change)


def test_refuses_conditions_it_has_no_use_for():
    net, params, (x, t, context) = network(TINY), random_params(TINY), inputs(TINY)
    with pytest.raises(UserError, match="needs a context"):
        net(params, x, t)
    with pytest.raises(UserError, match="does not take a level"):
        net(params, x, t, context, level=t)
