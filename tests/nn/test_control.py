"""ControlNets against diffusers' ControlNetModel, and what they leave unchanged at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from state_dicts import from_torch

from emu_jax.interop import control as public
from emu_jax.interop import unet
from emu_jax.nn.control import PREFIX, ControlAdapter, ControlNet
from emu_jax.nn.functional import Network, nest
from emu_jax.nn.unet import UNet

QUICK = {"xla_backend_optimization_level": 0}


def nets(name, **changes):
    """diffusers' U-Net and ControlNet, and ours of the same arguments."""
    config = pipelines.UNETS[name]
    model = pipelines.shaken(UNet2DConditionModel(**config))
    own = {k: v for k, v in config.items() if k not in ("sample_size", "up_block_types")}
    own |= dict(conditioning_embedding_out_channels=(8, 12)) | changes
    control = pipelines.shaken(ControlNetModel(**own))
    arguments, options = public.arguments(dict(control.config))
    base = Network(lambda rngs: UNet(**unet.arguments(model.config), rngs=rngs))
    return model, control, base, Network(lambda rngs: ControlNet(**arguments, **options, rngs=rngs))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd15", {}),
        ("sdxl", dict(controlnet_conditioning_channel_order="bgr")),
        ("sdxl", dict(down_block_types=("DownBlock2D",) * 2, mid_block_type="UNetMidBlock2D")),
    ],
    ids=["sd15", "sdxl", "without_attention"],
)
def test_a_controlled_call_is_diffusers(name, changes):
    model, control, base, own = nets(name, **changes)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, t = draw(2, 8, 8, 4), np.float32([7, 801])
    context, hint = draw(2, 5, model.config.cross_attention_dim), rng.random((2, 16, 16, 3))
    hint, more, vector = hint.astype(np.float32), {}, None
    if name == "sdxl":
        pooled, sizes = draw(2, 16), np.float32([[16, 16, 0, 0, 16, 16]] * 2)
        times = model.add_time_proj(torch.tensor(sizes).flatten()).reshape(2, -1)
        vector = np.concatenate([pooled, times.numpy()], axis=1)
        kwargs = dict(text_embeds=torch.tensor(pooled), time_ids=torch.tensor(sizes))
        more = dict(added_cond_kwargs=kwargs)
    first = lambda x: torch.tensor(x).permute(0, 3, 1, 2)  # noqa: E731
    given = first(x), torch.tensor(t), torch.tensor(context)
    with torch.no_grad():
        found = control(*given, controlnet_cond=first(hint), **more)
        wanted = model(
            *given,
            down_block_additional_residuals=found.down_block_res_samples,
            mid_block_additional_residual=found.mid_block_res_sample,
            **more,
        ).sample.permute(0, 2, 3, 1)
        plain = model(*given, **more).sample.permute(0, 2, 3, 1)

    params = from_torch(model.state_dict(), base.shapes())
    theirs = from_torch(control.state_dict(), own.shapes())

    def call(params, theirs, x, t, context, vector, hint):
        features = own(theirs, hint, method="embed")
        residuals = own(theirs, x, t, context, None, vector, hint=features)
        return base(params, x, t, context, None, vector, residuals=residuals)

    actual = jax.jit(call, compiler_options=QUICK)(params, theirs, x, t, context, vector, hint)
    error = np.linalg.norm(actual - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    effect = np.linalg.norm(plain - wanted) / np.linalg.norm(wanted)
    print(f"{name}: a call differs by {error:.1e}, by {effect:.1e} without control")
    assert error < 1e-4 and effect > 0.01


def test_a_fresh_control_leaves_every_bit_of_its_base():
    """Its copy has the base's values, its residuals are exactly zero, and the zero convolutions
    alone have a gradient. Op by op: of two compiled programs one may round otherwise.
    """
    sizes = dict(in_channels=4, widths=(8,), blocks=1, heads=2, context_width=6, groups=4)
    base = Network(lambda rngs: UNet(**sizes, out_channels=4, rngs=rngs))
    own = Network(lambda rngs: ControlNet(**sizes, hint_widths=(4,), rngs=rngs))
    shapes = nest("denoiser", base.shapes()) | nest(PREFIX, own.shapes())
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.float32(rng.standard_normal(shape))  # noqa: E731
    params = {path: draw(*x.shape) for path, x in base.shapes().items()}
    adapter, whole = ControlAdapter(3, (4,)), nest("denoiser", params)
    fresh, copied = adapter.init(jax.random.key(2), shapes), adapter.copied(shapes)
    assert fresh.keys() == nest(PREFIX, own.shapes()).keys() and copied
    fresh |= {path: whole[source] for path, source in copied.items()}
    assert adapter.merged(whole, fresh).keys() == shapes.keys()
    theirs = {path.removeprefix(f"{PREFIX}/"): x for path, x in fresh.items()}
    given = draw(2, 6, 6, 4), jnp.float32([7, 801]), draw(2, 5, 6)

    def call(theirs):
        features = own(theirs, draw(2, 6, 6, 3), method="embed")
        residuals = own(theirs, *given, hint=features)
        return base(params, *given, residuals=residuals), residuals

    output, residuals = call(theirs)
    assert all(not np.any(residual) for residual in residuals)
    np.testing.assert_array_equal(output, base(params, *given))
    slope = jax.grad(lambda p: jnp.mean(call(p)[0] ** 2))(theirs)
    moved = {path for path, gradient in slope.items() if np.any(gradient)}
    outputs = ("controlnet_down_blocks/", "controlnet_mid_block/")
    assert moved == {path for path in theirs if path.startswith(outputs)}
