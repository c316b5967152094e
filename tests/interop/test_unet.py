"""Denoisers of pixel diffusion, DeepFloyd IF's structures: a lone component of either stage."""

import jax
import numpy as np
import pipelines
import pytest
import torch
from diffusers import UNet2DConditionModel

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.interop import unet
from emu_jax.nn.functional import Network
from emu_jax.nn.unet import UNet


@pytest.mark.parametrize(
    "config", [pipelines.IF_BASE, pipelines.IF_SUPER], ids=["base", "super_resolution"]
)
def test_one_call_of_an_imported_denoiser_is_diffusers(config, tmp_path):
    model = pipelines.shaken(UNet2DConditionModel(**config))
    model.save_pretrained(tmp_path / "unet")
    assert main(["import", f"{tmp_path}/unet", f"--out={tmp_path}/ours"]) == 0
    found = load_model(f"{tmp_path}/ours").params
    params = {path.removeprefix("denoiser/"): value for path, value in found.items()}
    arguments = unet.arguments(model.config)
    net = Network(lambda rngs: UNet(**arguments, rngs=rngs))

    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, t, context = draw(2, 8, 8, config["in_channels"]), np.float32([7, 801]), draw(2, 5, 24)
    level = np.float32([250, 30]) if "class_embed_type" in config else None
    labels = None if level is None else torch.tensor(level)
    with torch.no_grad():
        wanted = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            torch.tensor(context),
            class_labels=labels,
        ).sample.permute(0, 2, 3, 1)
    quick = jax.jit(net, compiler_options={"xla_backend_optimization_level": 0})
    actual = np.asarray(quick(params, x, t, context, level=level))
    error = np.linalg.norm(actual - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    print(f"a call differs by {error:.1e}")
    assert np.std(wanted.numpy()) > 0.1 and error < 1e-4

    assert main(["export", f"{tmp_path}/ours", f"--out={tmp_path}/b", "--format=diffusers"]) == 0
    back = UNet2DConditionModel.from_pretrained(tmp_path / "b").state_dict()
    assert all(torch.equal(value, back[key]) for key, value in model.state_dict().items())
    assert unet.arguments(unet.to_config(arguments)) == arguments
