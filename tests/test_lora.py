"""Adapters as whole programs: a small run, resumed, drawn with, exported in both forms."""

import json
import shutil

import numpy as np
import pytest
import runs
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from emu_jax.checkpoint.adapters import FILE, read_adapter
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.cli.models import open_model, with_adapter
from emu_jax.errors import UserError
from emu_jax.nn.lora import merge

OPTIONS = (
    "--config.lora.rank=2",
    "--config.lora.alpha=4.0",
    "--config.train.steps=4",
    "--config.train.validate_every=0",
    "--config.groups.generator.optimizer.learning_rate=0.05",
)


def train(workdir, pictures, autoencoder_run, base):
    more = (f"--config.codec.path={autoencoder_run}", f"--config.init_from={base}", *OPTIONS)
    runs.train("latent_diffusion", workdir, pictures, *more)


@pytest.fixture(scope="module")
def adapted_run(pictures, autoencoder_run, generator_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    train(workdir, pictures, autoencoder_run, generator_run)
    return workdir


@pytest.fixture(scope="module")
def exported(adapted_run, tmp_path_factory):
    """The folder of the adapter alone."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = ["export", str(adapted_run), "--adapter", "--dtype=float32", f"--out={folder}"]
    assert main(arguments) == 0
    return folder


def test_a_checkpoint_holds_the_adapter_and_names_its_base(adapted_run, generator_run):
    arrays = runs.arrays(adapted_run)
    parameters = [name for name in arrays if name.startswith(("params/", "ema/", "opt/"))]
    counters = [name for name in parameters if not arrays[name].ndim]
    assert all("/lora_" in name for name in parameters if name not in counters)
    still = [n for n in arrays if n.startswith("params/") and not np.any(arrays[n])]
    # Of the coarsest map one position is left, whose attention to itself is always 1.
    assert all("attn1/to_q/lora_B" in name or "attn1/to_k/lora_B" in name for name in still)
    assert 0 < 4 * len(still) < len([n for n in arrays if n.startswith("params/")])
    base = load_model(str(adapted_run)).meta["frozen"]["base"]
    assert base["source"] == str(generator_run)
    assert base["fingerprint"] == load_model(str(generator_run)).fingerprint


def test_it_is_resumed_bit_for_bit(adapted_run, generator_run, autoencoder_run, pictures, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(adapted_run, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    train(copy, pictures, autoencoder_run, generator_run)
    expected, found = runs.arrays(adapted_run), runs.arrays(copy)
    assert int(found["step"]) == 4 and expected.keys() == found.keys()
    assert not [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert runs.lines(copy / "metrics.jsonl") == runs.lines(adapted_run / "metrics.jsonl")


def test_the_merged_model_is_the_base_and_the_change_that_torch_computes(
    adapted_run, generator_run, exported, tmp_path
):
    """And a file of ours reads back; an exported model has it merged."""
    base, whole = load_model(str(generator_run)).params, open_model(str(adapted_run))
    factors = load_file(exported / FILE)
    names = {name.rpartition(".lora_")[0] for name in factors}
    assert names and all(name.startswith("unet.") for name in names)
    for path, value in whole.params.items():
        module = "unet." + path.removeprefix("denoiser/").removesuffix("/kernel").replace("/", ".")
        expected = torch.tensor(base[path])
        if path.endswith("/kernel") and module in names:
            a, b = (factors[f"{module}.lora_{x}.weight"] for x in "AB")
            assert a.shape[0] == 2 and (torch.any(b != 0) or "attn1.to_" in module)
            expected = expected + (b @ a).T
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=path)
    assert whole.config["lora"]["rank"] == 0
    read = with_adapter(load_model(str(generator_run)), str(exported))
    for path, value in whole.params.items():
        np.testing.assert_allclose(read.params[path], value, atol=1e-5, err_msg=path)

    arguments = ["export", str(adapted_run), f"--out={tmp_path}/m", "--dtype=float32"]
    assert main(arguments) == 0
    model = load_model(f"{tmp_path}/m")
    assert model.params.keys() == base.keys()
    assert all(np.array_equal(x, whole.params[path]) for path, x in model.params.items())


def test_pictures_are_drawn_with_it(adapted_run, generator_run, exported, tmp_path):
    """The run and its base with the adapter's file draw the same, the base alone another."""
    drawn = {}
    for name, options in (
        ("run", [f"--checkpoint={adapted_run}"]),
        ("file", [f"--checkpoint={generator_run}", f"--adapter={exported}"]),
        ("base", [f"--checkpoint={generator_run}"]),
    ):
        out = tmp_path / name
        assert main(["sample", "a red disc", f"--out={out}", "--guidance_scale=30", *options]) == 0
        (file,) = (f for f in out.glob("*.png") if f.name != "grid.png")
        drawn[name] = file.read_bytes()
    assert drawn["run"] == drawn["file"] != drawn["base"]


def test_a_base_that_changed_is_refused(adapted_run, generator_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(adapted_run, copy)
    for record in copy.glob("checkpoints/*/meta/metadata"):
        text = json.loads(record.read_text())
        text["frozen"]["base"]["fingerprint"] = "0"
        record.write_text(json.dumps(text))
    with pytest.raises(UserError, match="which has changed since"):
        open_model(str(copy))


# The public layout -------------------------------------------------------------------------------


def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def test_factors_of_diffusers_own_modules_fall_on_our_kernels(tmp_path):
    """Linear layers and a convolution of its U-Net, with an alpha said in both public ways."""
    unet = small_unet()
    modules = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith((".to_q", ".to_out.0", "proj_in", "mid_block.resnets.0.conv1"))
    }
    shapes, tensors, wanted = {}, {}, {}
    for name, module in modules.items():
        out, inputs, *window = module.weight.shape
        path = f"denoiser/{name.replace('.', '/')}/kernel"
        shapes[path] = np.zeros((*window, inputs, out), np.float32)
        a = torch.randn(3, inputs, *window)
        b = torch.randn(out, 3, *(1 for _ in window))
        tensors |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
        delta = torch.einsum("or,ri...->oi...", b.reshape(out, 3), a)
        wanted[path] = delta.permute(*range(2, delta.ndim), 1, 0) * 2.0
    assert any(x.ndim == 4 for x in shapes.values())
    said = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 6})}
    save_file(tensors, tmp_path / "said.safetensors", metadata=said)
    alphas = {f"unet.{name}.alpha": torch.tensor(6.0) for name in modules}
    old = {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value
        for key, value in tensors.items()
    }
    save_file(old | alphas, tmp_path / "old.safetensors")
    for name in ("said", "old"):
        adapter, _ = read_adapter(str(tmp_path / f"{name}.safetensors"), shapes)
        merged = merge(shapes, adapter, 1.0)
        for path, delta in wanted.items():
            np.testing.assert_allclose(merged[path], delta, atol=1e-4, err_msg=path)

    stranger = {key.replace("mid_block", "middle"): value for key, value in tensors.items()}
    save_file(stranger, tmp_path / "stranger.safetensors")
    with pytest.raises(UserError, match="adapts modules that this model does not have"):
        read_adapter(str(tmp_path / "stranger.safetensors"), shapes)
    first = next(iter(tensors))
    save_file(
        tensors | {first: tensors[first][:, :2].contiguous()}, tmp_path / "narrow.safetensors"
    )
    with pytest.raises(UserError, match="are of another size"):
        read_adapter(str(tmp_path / "narrow.safetensors"), shapes)
    del tensors[first]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="lacks one of the two factors"):
        read_adapter(str(tmp_path / "half.safetensors"), shapes)
