"""diffusers' ControlNetModel: its settings, there and back, and what is refused by name."""

import inspect

import pipelines
import pytest
import roundtrips
from diffusers import ControlNetModel

from emu_jax.assembly.models import with_control
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import control
from emu_jax.interop.configs import plain

OWN = {k: v for k, v in pipelines.UNETS["sdxl"].items() if k not in ("sample_size",)}
OWN.pop("up_block_types")
SMALL = OWN | dict(
    down_block_types=("DownBlock2D",) * 2,
    mid_block_type="UNetMidBlock2D",
    controlnet_conditioning_channel_order="bgr",
    conditioning_embedding_out_channels=(4, 8),
)


def test_every_setting_is_known_with_its_default():
    theirs = inspect.signature(ControlNetModel.__init__).parameters
    theirs = {name: plain(p.default) for name, p in theirs.items() if name != "self"}
    assert theirs == {name: plain(x) for name, x in control.DEFAULTS.items()}


def test_a_setting_that_is_not_supported_is_refused_by_name():
    for name, value in (
        ("global_pool_conditions", True),
        ("class_embed_type", "timestep"),
        ("conditioning_channels", 4),
        ("mid_block_scale_factor", 1.5),
        ("num_attention_heads", 4),
        ("freq_shift", 1),
        ("controlnet_conditioning_channel_order", "gbr"),
        ("mid_block_type", "UNetMidBlock2D"),
        ("addition_embed_type", "text_image"),
        ("surprise", 1),
    ):
        with pytest.raises(UserError, match=name):
            control.arguments(OWN | {name: value})


@pytest.mark.parametrize("config", [OWN, SMALL], ids=["whole", "small"])
def test_there_and_back_is_the_same_bits_keys_and_settings(config, tmp_path):
    model = pipelines.shaken(ControlNetModel(**config))
    source, ours, back = (tmp_path / name for name in ("source", "ours", "back"))
    model.save_pretrained(source)
    assert main(["import", str(source), f"--out={ours}"]) == 0
    more = ["--adapter", "--format=diffusers", f"--out={back}"]
    assert main(["export", str(ours), *more]) == 0
    roundtrips.assert_same_files(source, back, weights=1)
    arguments, own = control.arguments(dict(model.config))
    assert control.arguments(control.to_config(arguments, own)) == (arguments, own)


def test_a_control_network_of_another_architecture_is_refused(tmp_path):
    pipelines.shaken(ControlNetModel(**OWN)).save_pretrained(tmp_path / "source")
    assert main(["import", f"{tmp_path}/source", f"--out={tmp_path}/ours"]) == 0
    model = load_model(f"{tmp_path}/ours")
    plain_model = type(model)({}, {"denoiser": dict(model.config["denoiser"])}, {}, "x")
    found = with_control(plain_model, f"{tmp_path}/ours@0.5")
    assert found.config["control"]["strength"] == 0.5 and not found.config["control"]["train"]
    for name, value in (("heads", [2, 8]), ("widths", [32, 96]), ("eps", 1e-6)):
        plain_model.config["denoiser"] = model.config["denoiser"] | {name: value}
        with pytest.raises(UserError, match=f"for a U-Net with {name}"):
            with_control(plain_model, f"{tmp_path}/ours")
