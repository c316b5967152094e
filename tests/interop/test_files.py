"""Weights as they come: variants, shards, old spellings, pickles; and what is refused."""

import json
import shutil
import tracemalloc

import jax
import numpy as np
import pipelines
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, schedulers, unet
from emu_jax.interop.components import Source, import_autoencoder
from emu_jax.interop.files import DIFFUSERS, copy_small, open_weights, to_params, to_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A lone AutoencoderKL's folder, 16 channels, shifted, as ours: (folder, ours)."""
    folder = tmp_path_factory.mktemp("vae")
    wide = dict(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
    one_by_one = dict(use_quant_conv=False, use_post_quant_conv=False)
    pipelines.vae(**wide, **one_by_one).save_pretrained(folder / "vae")
    assert main(["import", str(folder / "vae"), f"--out={folder}/ours"]) == 0
    return folder / "vae", folder / "ours"


def same_params(a, b) -> bool:
    a, b = load_model(str(a)).params, load_model(str(b)).params
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_lone_autoencoder_goes_there_and_back(vae, tmp_path):
    folder, ours = vae
    assert main(["export", str(ours), f"--out={tmp_path}", "--format=diffusers"]) == 0
    before, after = (AutoencoderKL.from_pretrained(x) for x in (folder, tmp_path))
    assert before.config.shift_factor == after.config.shift_factor == 0.0609
    assert (tmp_path / "config.json").read_text() == (
        folder / "config.json"
    ).read_text().strip() + "\n"
    states = before.state_dict(), after.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())
    params = load_model(str(ours)).params
    np.testing.assert_array_equal(params["latent/shift"], np.full(16, 0.0609, np.float32))
    np.testing.assert_allclose(params["latent/scale"], np.full(16, 1 / 1.5305), rtol=1e-6)


def test_a_lone_denoiser_goes_there_and_back(tmp_path):
    model = pipelines.shaken(UNet2DConditionModel(**pipelines.UNETS["sd15"]))
    model.save_pretrained(tmp_path / "unet")
    assert main(["import", f"{tmp_path}/unet", f"--out={tmp_path}/ours"]) == 0
    assert main(["export", f"{tmp_path}/ours", f"--out={tmp_path}/b", "--format=diffusers"]) == 0
    after = UNet2DConditionModel.from_pretrained(tmp_path / "b")
    files = (tmp_path / part / "config.json" for part in ("unet", "b"))
    assert len({file.read_text().strip() for file in files}) == 1
    states = model.state_dict(), after.state_dict()
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())


def test_old_spellings_shards_and_a_variant_are_the_same_weights(vae, tmp_path):
    folder, ours = vae
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.torch.load_file(old / WEIGHTS)
    for new, before in names.items():
        tensors = {k.replace(f".{new}.", f".{before}."): x for k, x in tensors.items()}
    assert any(".query." in key for key in tensors)
    safetensors.torch.save_file(tensors, old / WEIGHTS)

    sharded = tmp_path / "sharded"
    AutoencoderKL.from_pretrained(folder).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    variant = tmp_path / "variant"
    AutoencoderKL.from_pretrained(folder).save_pretrained(variant, variant="fp16")
    both = tmp_path / "both"
    AutoencoderKL.from_pretrained(folder).save_pretrained(
        both, variant="fp16", max_shard_size="100KB"
    )
    other = {key: torch.zeros_like(x) for key, x in tensors.items()}
    safetensors.torch.save_file(other, both / WEIGHTS)  # under the plain name

    for place, options in ((old, []), (sharded, []), (variant, []), (both, ["--variant=fp16"])):
        assert main(["import", str(place), f"--out={tmp_path}/ours", *options]) == 0
        assert same_params(tmp_path / "ours", ours), place


def test_a_pickle_is_read_only_if_asked_for_and_only_its_tensors(vae, tmp_path, capsys):
    folder, ours = vae
    AutoencoderKL.from_pretrained(folder).save_pretrained(tmp_path, safe_serialization=False)
    arguments = ["import", str(tmp_path), f"--out={tmp_path}/ours"]
    assert main(arguments) == 2
    assert "is a pickle, which may hold code" in capsys.readouterr().err
    assert main([*arguments, "--allow_pickle"]) == 0
    assert same_params(tmp_path / "ours", ours)
    (file,) = tmp_path.glob("*.bin")
    torch.save({"a": Trap()}, file)
    assert main([*arguments, "--allow_pickle"]) == 2
    assert "more than tensors" in capsys.readouterr().err
    assert not Trap.sprung


def test_a_variant_of_pickles_is_the_one_asked_for(vae, tmp_path):
    """And shards of pickles with their index; of several nameless ones none is guessed."""
    folder, ours = vae
    model = AutoencoderKL.from_pretrained(folder)
    model.save_pretrained(tmp_path / "p", safe_serialization=False, variant="fp16")
    plain = tmp_path / "p" / "diffusion_pytorch_model.bin"
    torch.save({key: torch.zeros_like(x) for key, x in model.state_dict().items()}, plain)
    arguments = ["import", f"{tmp_path}/p", f"--out={tmp_path}/ours", "--allow_pickle"]
    assert main([*arguments, "--variant=fp16"]) == 0
    assert same_params(tmp_path / "ours", ours)
    assert not same_weights(open_weights(tmp_path / "p", DIFFUSERS, pickle=True), model)
    with pytest.raises(UserError, match="no weights of variant ema, only fp16, none"):
        open_weights(tmp_path / "p", DIFFUSERS, "ema", True)
    shards = tmp_path / "shards"
    model.save_pretrained(shards, safe_serialization=False, variant="fp16", max_shard_size="100KB")
    assert len(list(shards.glob("*.bin"))) > 1
    assert same_weights(open_weights(shards, DIFFUSERS, "fp16", True), model)
    (index,) = shards.glob("*.index*")
    index.write_text(json.dumps({"weight_map": {"a": "../p/diffusion_pytorch_model.bin"}}))
    with pytest.raises(UserError, match="does not lie in"):
        open_weights(shards, DIFFUSERS, "fp16", True)
    (tmp_path / "own").mkdir()
    for name in ("a.pt", "b.pt"):
        torch.save(model.state_dict(), tmp_path / "own" / name)
    with pytest.raises(UserError, match=r"only a\.pt, b\.pt"):
        open_weights(tmp_path / "own", DIFFUSERS, pickle=True)


def same_weights(tensors, model) -> bool:
    state = model.state_dict()
    same = (np.array_equal(tensors[key], state[key].numpy()) for key in state)
    return tensors.keys() == state.keys() and all(same)


def test_a_model_of_ours_needs_no_import(vae, capsys, tmp_path):
    assert main(["import", str(vae[1]), f"--out={tmp_path}/x"]) == 2
    assert "is already a model of emu_jax" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [None, 0, -1.0, float("inf")])
def test_a_latent_scale_is_a_number_above_zero(factor):
    with pytest.raises(UserError, match=r"scaling_factor = .* above 0"):
        autoencoder.latent_figures(dict(scaling_factor=factor))


def test_no_link_out_of_a_folder_is_copied(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    tokenizer, target = tmp_path / "pipeline" / "tokenizer", tmp_path / "target"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text("{}")
    (tokenizer / "merges.txt").symlink_to("vocab.json")
    copy_small(tokenizer, target)
    assert (target / "merges.txt").read_text() == "{}"
    (tokenizer / "notes.txt").symlink_to(tmp_path / "secret.txt")
    shutil.rmtree(target)
    with pytest.raises(UserError, match=r"names 'notes\.txt', a symbolic link out of"):
        copy_small(tokenizer, target)
    assert not target.exists()
    (tmp_path / "secret.json").write_text('{"model_type": "t5"}')
    for folder in (tokenizer, tmp_path / "pipeline"):
        (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="a symbolic link out of"):
        Source(tmp_path / "pipeline").settings()
    with pytest.raises(UserError, match="a symbolic link out of"):
        Source(tmp_path / "pipeline").settings("tokenizer")
    weights = tmp_path / "pipeline" / "unet"
    weights.mkdir()
    (weights / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="a symbolic link out of"):
        Source(tmp_path / "pipeline").weights("unet")


class Trap:
    sprung = False

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung = True


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.update({"encoder.extra.weight": torch.zeros(2)}), "encoder.extra.weight"),
        (lambda t: t.pop("decoder.conv_in.bias"), "lack keys .*decoder.conv_in.bias"),
        (
            lambda t: t.update({"decoder.conv_in.bias": torch.zeros(3)}),
            "decoder.conv_in.bias has shape",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(vae, tmp_path, change, words):
    folder, _ = vae
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        import_autoencoder(Source(tmp_path))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(novelty=1), "has a setting 'novelty'"),
        (dict(dual_cross_attention=True), "dual_cross_attention = True"),
        (dict(addition_embed_type="image"), "addition_embed_type = 'image'"),
        (dict(up_block_types=["UpBlock2D"] * 2), "has up_block_types = "),
        (dict(num_attention_heads=4), "num_attention_heads = 4"),
        (dict(time_embedding_act_fn="gelu"), "time_embedding_act_fn"),
        (dict(mid_block_only_cross_attention=True), "mid_block_only_cross_attention"),
    ],
)
def test_structures_of_another_kind_are_refused_by_name(change, words):
    with pytest.raises(UserError, match=words):
        unet.arguments(pipelines.UNETS["sd15"] | change)


def test_what_the_public_classes_cannot_say_is_refused():
    arguments = dict(latent_channels=4, widths=(8, 16), blocks=1)
    one = np.ones(4, np.float32)
    with pytest.raises(UserError, match="no Fourier features"):
        autoencoder.to_config(arguments | dict(fourier_bands=2), one, one, 16)
    with pytest.raises(UserError, match="differ from channel to channel"):
        autoencoder.to_config(arguments, one, np.arange(1, 5, dtype=np.float32), 16)
    with pytest.raises(UserError, match=r"no process\.time_input=continuous"):
        process = dict(schedule="scaled_linear", prediction="eps", time_input="continuous")
        schedulers.to_config(process, dict(sampler="ddim"))
    with pytest.raises(UserError, match=r"no process\.variance=ignored"):
        process = dict(schedule="scaled_linear", prediction="eps", time_input="index")
        schedulers.to_config(process | dict(variance="ignored"), dict(sampler="ddim"))
    with pytest.raises(UserError, match=r"no process\.schedule=cosine"):
        process = dict(schedule="cosine", prediction="eps", time_input="index")
        schedulers.to_config(process, dict(sampler="ddim"))


def test_the_shipped_generator_says_why_it_has_no_public_layout(tmp_path, capsys):
    arguments = ["builtin:latent_diffusion_64", f"--out={tmp_path}/x", "--format=diffusers"]
    assert main(["export", *arguments]) == 2
    assert "The conditioning of this generator is another" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    """From the public file to ours and back: never more than a few tensors of 20."""
    shape, count = (256, 256), 20  # a quarter of a MiB each
    tensors = {f"{i}.weight": torch.full(shape, float(i)) for i in range(count)}
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    del tensors
    wanted = {f"{i}/kernel": jax.ShapeDtypeStruct(shape, np.float32) for i in range(count)}
    tracemalloc.start()
    params = to_params(open_weights(tmp_path, "diffusion_pytorch_model"), wanted, "file")
    save_model(str(tmp_path / "ours"), params, {}, {}, dtype=None)
    back = to_tensors(open_weights(tmp_path / "ours", "model"))
    assert isinstance(back, Lazy)
    save_model(str(tmp_path / "back"), back, {}, {}, dtype=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**18
    again = safetensors.torch.load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(again[f"{i}.weight"], torch.full(shape, float(i))) for i in range(count))
