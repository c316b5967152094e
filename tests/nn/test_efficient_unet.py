"""The Efficient U-Net against the same composition of diffusers' blocks, and Imagen's sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from state_dicts import from_torch

from emu_jax.errors import UserError
from emu_jax.nn.efficient_unet import EfficientUNet
from emu_jax.nn.functional import Network
from emu_jax.planning.flops import count_flops

WIDTHS, BLOCKS, TIME, TEXT, GROUPS = (16, 32), (1, 2), 24, 64, 8
SMALL = dict(
    in_channels=6,
    out_channels=3,
    widths=WIDTHS,
    blocks=BLOCKS,
    attention=("none", "full"),
    middle=1,
    head_width=16,
    context_width=TEXT,
    text_pool_heads=4,
    time_width=TIME,
    groups=GROUPS,
    level=True,
)


class Stage(torch.nn.Module):
    def __init__(self, inputs, i, attention, resampler):
        super().__init__()
        sides = [inputs] + [WIDTHS[i]] * (BLOCKS[i] - 1)
        self.resnets = torch.nn.ModuleList(resnet(side, WIDTHS[i]) for side in sides)
        if attention != "none":
            self.attention = Attention(
                query_dim=WIDTHS[i],
                heads=WIDTHS[i] // 16,
                dim_head=16,
                added_kv_proj_dim=TEXT,
                norm_num_groups=GROUPS,
                only_cross_attention=attention == "cross",
                bias=True,
                residual_connection=True,
                processor=AttnAddedKVProcessor(),
            )
        self.resampler = resampler

    def forward(self, x, temb, context):
        for block in self.resnets:
            x = block(x, temb)
        return self.attention(x, context) if hasattr(self, "attention") else x


def resnet(inputs, outputs):
    return ResnetBlock2D(
        in_channels=inputs,
        out_channels=outputs,
        temb_channels=TIME,
        groups=GROUPS,
        eps=1e-5,
        time_embedding_norm="scale_shift",
    )


class Reference(torch.nn.Module):
    """Two stages, written out."""

    def __init__(self, attention):
        super().__init__()
        fine, coarse = WIDTHS
        self.sines = Timesteps(fine, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.conv_in = torch.nn.Conv2d(6, fine, 3, padding=1)
        self.time_embedding = TimestepEmbedding(fine, TIME)
        self.class_embedding = TimestepEmbedding(fine, TIME)
        self.add_embedding = TextTimeEmbedding(TEXT, TIME, num_heads=4)
        down = [Downsample2D(fine, use_conv=True, name="op") for _ in range(2)]
        self.down_blocks = torch.nn.ModuleList(
            [Stage(fine, 0, attention[0], down[0]), Stage(fine, 1, attention[1], down[1])]
        )
        self.mid_blocks = torch.nn.ModuleList([resnet(coarse, coarse)])
        up = [Upsample2D(width, use_conv=True) for width in (coarse, fine)]
        self.up_blocks = torch.nn.ModuleList(
            [
                Stage(coarse + coarse, 1, attention[1], up[0]),
                Stage(coarse + fine, 0, attention[0], up[1]),
            ]
        )
        self.conv_norm_out = torch.nn.GroupNorm(GROUPS, fine, eps=1e-5)
        self.conv_out = torch.nn.Conv2d(fine, 3, 3, padding=1)

    def forward(self, x, t, context, level):
        temb = self.time_embedding(self.sines(t)) + self.class_embedding(self.sines(level))
        temb = temb + self.add_embedding(context)  # the blocks apply the activation themselves
        whole = x.shape[2:]
        x = self.conv_in(x)
        fine = self.down_blocks[0].resampler(x)
        half = fine.shape[2:]
        fine = self.down_blocks[0](fine, temb, context)
        coarse = self.down_blocks[1](self.down_blocks[1].resampler(fine), temb, context)
        x = self.mid_blocks[0](coarse, temb)
        x = self.up_blocks[0](torch.cat([x, coarse / 2**0.5], 1), temb, context)
        x = self.up_blocks[0].resampler(x, output_size=half)
        x = self.up_blocks[1](torch.cat([x, fine / 2**0.5], 1), temb, context)
        x = self.up_blocks[1].resampler(x, output_size=whole)
        return self.conv_out(torch.nn.functional.silu(self.conv_norm_out(x)))


def network(**changes):
    return Network(lambda rngs: EfficientUNet(**{**SMALL, **changes}, rngs=rngs))


def inputs(size):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, *size, 6), np.float32)
    t, level = np.array([7.0, 801.0], np.float32), np.array([250.0, 30.0], np.float32)
    return x, t, rng.standard_normal((2, 5, TEXT), np.float32), level


@pytest.mark.parametrize("attention", [("none", "full"), ("cross", "full"), ("none", "cross")])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_equals_diffusers_blocks_put_together(attention, size):
    torch.manual_seed(0)
    model = Reference(attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net = network(attention=attention)
    params = from_torch({k: v.numpy() for k, v in model.state_dict().items()}, net.shapes())
    x, t, context, level = inputs(size)
    with torch.no_grad():
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2), *map(torch.tensor, (t, context, level))
        ).permute(0, 2, 3, 1)
    actual = jax.jit(lambda p: net(p, x, t, context, level=level))(params)
    assert np.std(expected.numpy()) > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


def test_masked_tokens_have_no_say():
    net = network()
    rng = np.random.default_rng(0)
    params = {k: 0.1 * rng.standard_normal(s.shape, np.float32) for k, s in net.shapes().items()}
    x, t, context, level = inputs((4, 4))
    mask = np.array([[1, 1, 1, 0, 0]] * 2, bool)
    run = jax.jit(lambda context: net(params, x, t, context, mask, level=level))
    other = context.copy()
    other[:, 3:] = 7.0
    np.testing.assert_allclose(run(context), run(other), atol=1e-6)
    other[:, 0] = 7.0
    assert np.abs(run(context) - run(other)).max() > 1e-3


def test_its_convolutions_run_below_the_pictures_size():
    seen = []

    def note(x):
        seen.append(x.shape[1])
        return x

    net = network(constrain=note)
    x, t, context, level = inputs((8, 8))
    y = jax.eval_shape(net, net.shapes(), x, t, context, level=level)
    assert y.shape == (2, 8, 8, 3)
    # The first convolution, then each stage: the halved map and what its blocks make of it.
    assert seen == [8, 4, 4, 2, 2, 2, 2, 4, 4, 8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(blocks=(1, 2, 3)), "widths has 2 values, blocks 3 and attention 2"),
        (dict(attention=("none", "all")), "attention is 'all'; use 'none', 'cross' or 'full'"),
        (
            dict(attention=("full", "full"), head_width=24),
            "do not divide into heads of 24",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        network(**changes).shapes()


def test_a_level_is_given_exactly_where_there_is_a_low_resolution_image():
    x, t, context, level = inputs((4, 4))
    for net, given, words in (
        (network(), None, "needs a level"),
        (network(level=False), level, "does not take a level"),
    ):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(net, net.shapes(), x, t, context, level=given)


def test_rematerialized_it_is_the_same_function():
    plain, other = network(), network(remat="block")
    rng = np.random.default_rng(0)
    params = {
        path: 0.1 * rng.normal(size=x.shape).astype(np.float32)
        for path, x in plain.shapes().items()
    }
    data = inputs((8, 8))

    def gradients(net):
        def of(params):  # squares: a sum with terms of both signs would lose digits
            return jnp.sum(net(params, *data[:3], level=data[3]) ** 2)

        return of, *jax.jit(jax.value_and_grad(of))(params)

    of, wanted, expected = gradients(plain)
    anew, value, grads = gradients(other)
    assert count_flops(jax.grad(anew), params) > 1.1 * count_flops(jax.grad(of), params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for path, gradient in expected.items():
        size = np.abs(gradient).max()
        np.testing.assert_allclose(grads[path], gradient, atol=1e-4 * size + 1e-6, err_msg=path)
