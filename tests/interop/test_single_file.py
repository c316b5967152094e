"""Single files in the original layout are what diffusers' own converters make of them, and what is
written is what was read."""

import json
from dataclasses import replace

import diffusers
import numpy as np
import original_layout
import pipelines
import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils as theirs

from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.interop import single_file_families as families
from emu_jax.interop.pipelines import prepare_pipeline
from emu_jax.interop.single_file import ASIDE, open_single_file, write_single_file

PARTS = ("unet", "vae")
NETWORKS = tuple(families.PREFIXES.values())


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def made(request, tmp_path_factory):
    """(name; small family; its file; the folder that diffusers' converters make of the file)."""
    family = getattr(families, request.param)
    folder = tmp_path_factory.mktemp("single")
    home = pipelines.write(request.param.lower(), folder)
    parts = [*PARTS, *family.text_encoders]
    settings = {part: json.loads((home / part / "config.json").read_text()) for part in parts}
    settings["scheduler"] = json.loads((home / "scheduler/scheduler_config.json").read_text())
    settings[""] = json.loads((home / "model_index.json").read_text())

    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: 0.1 * torch.randn(shape, generator=generator)
        for key, shape in original_layout.whole(settings).items()
    }
    file = folder / "model.safetensors"
    safetensors.torch.save_file(tensors, file)
    pipeline = DiffusionPipeline.from_pretrained(home, safety_checker=None)
    load(pipeline, tensors, settings)
    pipeline.save_pretrained(folder / "converted")
    return request.param, replace(family, settings=settings), file, folder / "converted"


@pytest.fixture
def small(made, monkeypatch):
    """The same without the name, the family being what is known by it."""
    monkeypatch.setattr(families, *made[:2])
    return made[1:]


def load(pipeline, tensors, settings, **options) -> None:
    """Fills diffusers' networks by diffusers' converters, strictly."""
    unet = theirs.convert_ldm_unet_checkpoint(tensors, settings["unet"], **options)
    pipeline.unet.load_state_dict(unet)
    pipeline.vae.load_state_dict(theirs.convert_ldm_vae_checkpoint(tensors, settings["vae"]))
    text = theirs.convert_ldm_clip_checkpoint(tensors)
    text.pop("text_model.embeddings.position_ids")
    own = pipeline.text_encoder.state_dict()
    head = "" if any(key.startswith("text_model.") for key in own) else "text_model."
    pipeline.text_encoder.load_state_dict({k.removeprefix(head): v for k, v in text.items()})
    if "text_encoder_2" in settings:
        second = pipeline.text_encoder_2
        found = theirs.convert_open_clip_checkpoint(second, tensors, original_layout.OPENCLIP)
        second.load_state_dict(found)


def tokenizer_of(folder) -> str:
    return f"--tokenizer={folder / 'tokenizer'}"


def test_a_file_becomes_what_the_converted_folder_becomes(small, tmp_path):
    """Model, codec and encoders bit by bit, configs, and what the tokenizers give."""
    family, file, converted = small
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["import", str(file), f"--out={one}", tokenizer_of(converted)]) == 0
    assert main(["import", str(converted), f"--out={other}"]) == 0
    for part in ("", "codec"):
        a, b = load_model(str(one / part)), load_model(str(other / part))
        assert a.params.keys() == b.params.keys()
        assert all(np.array_equal(a.params[key], b.params[key]) for key in a.params)
        assert json.dumps(a.config).replace(str(one), str(other)) == json.dumps(b.config)
    assert main(["export", str(one), f"--out={tmp_path}/back", "--format=diffusers"]) == 0
    back = DiffusionPipeline.from_pretrained(tmp_path / "back", safety_checker=None)
    wanted = DiffusionPipeline.from_pretrained(converted, safety_checker=None)
    for part in [*PARTS, *family.text_encoders]:
        a, b = (getattr(pipeline, part).state_dict() for pipeline in (back, wanted))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for part in ("tokenizer", "tokenizer_2")[: len(family.text_encoders)]:
        told = dict(padding="max_length", truncation=True, max_length=pipelines.LENGTH)
        a, b = (getattr(pipeline, part)("a red fox", **told) for pipeline in (back, wanted))
        assert a["input_ids"] == b["input_ids"]


def test_a_file_comes_back_bit_by_bit_and_opens_in_diffusers(small, tmp_path):
    """From the file, and from the folder that it was converted to."""
    family, file, converted = small
    wanted = safetensors.torch.load_file(file)
    left_out = {key for key in wanted if ASIDE.fullmatch(key)}
    assert 0 < len(left_out) < 20 and not any(key.startswith(NETWORKS) for key in left_out)
    for source, more in ((file, [tokenizer_of(converted)]), (converted, [])):
        ours, back = tmp_path / source.stem, tmp_path / f"{source.stem}_back.safetensors"
        assert main(["import", str(source), f"--out={ours}", *more]) == 0
        assert main(["export", str(ours), f"--out={back}", "--format=single_file"]) == 0
        found = safetensors.torch.load_file(back)
        assert found.keys() == wanted.keys() - left_out
        assert all(torch.equal(found[key], wanted[key]) for key in found)
    kind = getattr(diffusers, family.settings[""]["_class_name"])
    opened = kind.from_single_file(str(back), config=str(converted), local_files_only=True)
    reference = DiffusionPipeline.from_pretrained(converted, safety_checker=None)
    for part in [*PARTS, *family.text_encoders]:
        a, b = (getattr(pipeline, part).state_dict() for pipeline in (opened, reference))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    half = tmp_path / "half.safetensors"
    options = ["--format=single_file", "--dtype=float16"]
    assert main(["export", str(ours), f"--out={half}", *options]) == 0
    found = safetensors.torch.load_file(half)
    assert all(
        torch.equal(x, wanted[key].half() if key.startswith(NETWORKS) else wanted[key])
        for key, x in found.items()
    )


@pytest.mark.parametrize("made", ["SD15"], indirect=True)
def test_what_a_file_cannot_say_is_refused_and_nothing_is_written(small, tmp_path, monkeypatch):
    family, _, converted = small
    ours, out = tmp_path / "ours", tmp_path / "back.safetensors"
    assert main(["import", str(converted), f"--out={ours}"]) == 0
    model, codec = load_model(str(ours)), load_model(str(ours / "codec"))

    def published(part, **settings):
        changed = {**family.settings, part: family.settings[part] | settings}
        monkeypatch.setattr(families, "SD15", replace(family, settings=changed))

    weights = ours / "text_encoder/model.safetensors"
    whole = safetensors.torch.load_file(weights)
    lacking = {key: x for key, x in whole.items() if not key.endswith("layers.0.mlp.fc1.bias")}
    safetensors.torch.save_file(lacking, weights)
    with pytest.raises(UserError, match=r"text_encoder: .* lack keys .*layers.0.mlp.fc1.bias"):
        write_single_file(prepare_pipeline(model, codec), out)
    safetensors.torch.save_file(whole, weights)

    own = prepare_pipeline(model, codec)
    scaled = own.networks["unet"].config | dict(resnet_out_scale_factor=2.0)
    scaled |= dict(mid_block_scale_factor=2.0)
    networks = {**own.networks, "unet": replace(own.networks["unet"], config=scaled)}
    with pytest.raises(UserError, match=r"unet has output_scale_factor = None, in this model 2.0"):
        write_single_file(replace(own, networks=networks), out)

    for part, settings, words in (
        ("unet", dict(norm_num_groups=4), "unet has groups = 4, in this model 32"),
        ("vae", dict(scaling_factor=0.25), r"vae has scale = \[4.0, 4.0, 4.0, 4.0\], in"),
        (
            "scheduler",
            dict(prediction_type="v_prediction"),
            "prediction = 'v', in this model 'eps'",
        ),
        ("text_encoder", dict(hidden_act="relu"), "text_encoder has hidden_act = 'relu'"),
    ):
        published(part, **settings)
        with pytest.raises(UserError, match=f"{words}.*--format=diffusers"):
            write_single_file(prepare_pipeline(model, codec), out)
    with pytest.raises(UserError, match=r"This is a AmusedPipeline; .* only for Stable"):
        families.family_for("AmusedPipeline")
    assert not out.exists()


def test_of_two_denoisers_one_is_asked_for(small, tmp_path):
    family, file, converted = small
    tensors = safetensors.torch.load_file(file)
    for key in [key for key in tensors if key.startswith(original_layout.UNET)]:
        average = "model_ema." + "".join(key.split(".")[1:])
        tensors[average] = tensors[key] + 1
    tensors["model_ema.decay"] = torch.tensor(0.999)
    both = tmp_path / "both.safetensors"
    safetensors.torch.save_file(tensors, both)
    tokenizer = str(converted / "tokenizer")
    with pytest.raises(UserError, match="--variant=ema or --variant=non_ema"):
        open_single_file(both, tokenizer)
    for variant, averaged in (("ema", True), ("non_ema", False)):
        found = open_single_file(both, tokenizer, variant).weights("unet")
        settings = family.settings["unet"]
        wanted = theirs.convert_ldm_unet_checkpoint(tensors, settings, extract_ema=averaged)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], wanted[key].numpy()) for key in wanted)
    with pytest.raises(UserError, match="omit --variant"):
        open_single_file(file, tokenizer, "ema")


@pytest.mark.parametrize("made", ["SD15"], indirect=True)
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.update({"v_pred": torch.zeros(1)}), "1 keys do not belong to .*: v_pred"),
        (lambda t: t.update({"control_model.a": torch.zeros(1)}), "is a ControlNet"),
        (lambda t: t.update({"cond_stage_model.model.a": torch.zeros(1)}), "Stable Diffusion 2's"),
        (
            lambda t: t.update(
                {original_layout.UNET + "input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}
            ),
            "has 9 input channels, not 4: it is a model for inpainting",
        ),
        (
            lambda t: [t.pop(key) for key in list(t) if key.startswith(original_layout.UNET)],
            "not a whole model in the original layout",
        ),
        (
            lambda t: [t.pop(key) for key in list(t) if key.endswith("layers.0.mlp.fc1.bias")],
            r"\(text_encoder\): .* lack keys .*layers.0.mlp.fc1.bias",
        ),
        (
            lambda t: t.update({"cond_stage_model.transformer.x": torch.zeros(1)}),
            "hold keys this network does not have: text_model.x",
        ),
    ],
)
def test_what_is_not_one_of_the_two_is_refused_by_name(small, tmp_path, change, words):
    _, file, converted = small
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    changed = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(tensors, changed)
    with pytest.raises(UserError, match=words):
        open_single_file(changed, str(converted / "tokenizer"))


@pytest.mark.parametrize("made", ["SD15"], indirect=True)
def test_what_the_command_line_says(small, tmp_path, capsys):
    _, file, converted = small
    out = f"--out={tmp_path}/ours"
    assert main(["import", str(file), out]) == 2
    assert "contains no tokenizer; name CLIP's with --tokenizer=DIR" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "no.safetensors"), out]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert main(["import", str(converted), out, tokenizer_of(converted)]) == 2
    assert "--tokenizer is for single files" in capsys.readouterr().err
    pickle = tmp_path / "old.ckpt"
    torch.save({"state_dict": safetensors.torch.load_file(file), "global_step": 5}, pickle)
    assert main(["import", str(pickle), out, tokenizer_of(converted)]) == 2
    assert "is a pickle, which may hold code" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert main(["export", str(converted), out, "--format=single_file"]) == 2
    assert f"needs a file, {out}.safetensors" in capsys.readouterr().err
    tokenizer = str(converted / "tokenizer")
    old = open_single_file(pickle, tokenizer, pickle=True).weights("vae")
    new = open_single_file(file, tokenizer).weights("vae")
    assert old.keys() == new.keys() and all(np.array_equal(old[key], new[key]) for key in new)
