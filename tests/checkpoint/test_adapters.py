"""Adapters' files: every way to say what a module's factors count, and files that are refused.

What diffusers and peft themselves write and read: tests/interop/test_adapters.py.
"""

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

from emu_jax.checkpoint.adapters import FILE, read_adapter
from emu_jax.errors import UserError
from emu_jax.nn.lora import merge

SHAPES = {"denoiser/mid/to_q/kernel": (5, 7), "denoiser/conv/kernel": (3, 3, 4, 6)}
BASE = {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}
RANK = 3


@pytest.fixture(scope="module")
def factors():
    """{"mid.to_q.lora_A.weight": ...} and what they make of each kernel, alpha being the rank."""
    torch.manual_seed(0)
    tensors, wanted = {}, {}
    for path, (*window, into, out) in SHAPES.items():
        a, b = torch.randn(RANK, into, *window), torch.randn(out, RANK, *(1 for _ in window))
        module = path.removeprefix("denoiser/").removesuffix("/kernel").replace("/", ".")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        delta = torch.einsum("or,ri...->oi...", b.reshape(out, RANK), a)
        wanted[path] = delta.permute(*range(2, delta.ndim), 1, 0)
    return tensors, wanted


def named(tensors, prefix, **spelling):
    found = {f"{prefix}{name}": value.clone() for name, value in tensors.items()}
    for old, new in spelling.items():
        found = {name.replace(old, new): value for name, value in found.items()}
    return found


def kohya(tensors, alpha):
    """In kohya's layout."""
    found = {}
    for name, value in tensors.items():
        module, _, end = name.partition(".lora_")
        flat = "lora_unet_" + module.replace(".", "_")
        kind = "down" if end.startswith("A") else "up"
        found[f"{flat}.lora_{kind}.weight"] = value.clone()
        if alpha is not None:
            found[f"{flat}.alpha"] = alpha.clone()
    return found


@pytest.mark.parametrize(
    "way", ["unsaid", "said", "said_alone", "alphas", "conditioner", "peft", "kohya", "plain_kohya"]
)
def test_what_factors_count_is_read_however_it_is_said(way, factors, tmp_path):
    tensors, wanted = factors
    file, said, alpha = tmp_path / FILE, {}, 6
    match way:
        case "unsaid":
            held, alpha = named(tensors, "unet."), RANK
        case "said":
            held, said = named(tensors, "unet."), {"unet.lora_alpha": 6, "unet.r": RANK}
        case "said_alone":
            held, said = named(tensors, ""), {"lora_alpha": 6, "use_dora": False}
        case "alphas":
            held = named(tensors, "transformer.", lora_A="lora.down", lora_B="lora.up")
            modules = {name.partition(".lora.")[0] for name in held}
            held |= {f"{module}.alpha": torch.tensor(6.0) for module in modules}
        case "kohya":
            held = kohya(tensors, torch.tensor([6.0]))  # not a scalar, as some programs write it
        case "plain_kohya":  # alpha is the rank
            held, alpha = kohya(tensors, None), RANK
        case "conditioner":
            held, said = named(tensors, "conditioner."), {"conditioner.lora_alpha": 6}
        case "peft":
            held, file = named(tensors, "base_model.model."), tmp_path / "adapter_model.safetensors"
            (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6, "alpha_pattern": {}}')
    save_file(held, file, metadata={"lora_adapter_metadata": json.dumps(said)})
    network = "conditioner" if way == "conditioner" else "denoiser"
    base = {path.replace("denoiser", network): value for path, value in BASE.items()}
    for path in (file, tmp_path):
        adapter, _ = read_adapter(str(path), base)
        merged = merge(base, adapter, 1.0)
        for name, delta in wanted.items():
            found = merged[name.replace("denoiser", network)]
            np.testing.assert_allclose(found, delta * alpha / RANK, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stranger", r"modules that this model does not have: unet\.middle\.to_q"),
        ("text", r"does not have: text_encoder\.conv, text_encoder\.mid\.to_q"),
        ("narrow", "are of another size than this model's kernel"),
        ("half", "lacks the factor down of unet.mid.to_q"),
        ("flat", "the factors of unet.mid.to_q do not fit: down"),
        ("alpha", r"unet\.mid\.to_q\.alpha is \[2\], not one number"),
        ("dora", r"is a DoRA, .*unet\.mid\.to_q\.lora_magnitude_vector.* merge it into its base"),
        ("kohyas_dora", "is a DoRA, which normalizes the adapted weights"),
        ("bias", "is a LoRA with a bias"),
        ("more", "contains unet.mid.to_q.novelty, which is not a factor"),
        ("none", "is not an adapter"),
        ("peft", r"needs adapter_config\.json, which is not in the same folder"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused_by_name(change, words, factors, tmp_path):
    held, said, file = named(factors[0], "unet."), {}, FILE
    first = "unet.mid.to_q.lora_A.weight"
    match change:
        case "stranger":
            held = named(factors[0], "unet.", mid="middle")
        case "text":
            held = dict(sorted(named(factors[0], "text_encoder.").items()))
        case "narrow":
            held[first] = held[first][:, :2].contiguous()
        case "half":
            del held[first]
        case "flat":
            held[first] = held[first].reshape(-1)
        case "alpha":
            held["unet.mid.to_q.alpha"] = torch.ones(2)
        case "dora":
            held["unet.mid.to_q.lora_magnitude_vector"] = torch.ones(7)
        case "kohyas_dora":
            held = {"lora_unet_mid_to_q.dora_scale": torch.ones(7)}
        case "bias":
            held["unet.mid.to_q.lora_B.bias"] = torch.ones(7)
        case "more":
            held["unet.mid.to_q.novelty"] = torch.ones(7)
        case "none":
            held = {"unet.mid.to_q.weight": torch.ones(7, 5)}
        case "peft":
            file = "adapter_model.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    save_file(held, tmp_path / file, metadata=metadata)
    with pytest.raises(UserError, match=words):
        read_adapter(str(tmp_path), BASE)


# Settings ----------------------------------------------------------------------------------------


def scaled(factors, folder, **settings):
    """What each kernel's change is multiplied by with this adapter_config.json."""
    tensors, wanted = factors
    save_file(named(tensors, "base_model.model."), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    merged = merge(BASE, read_adapter(str(folder), BASE)[0], 1.0)
    ratios = (np.asarray(merged[name]) / delta for name, delta in wanted.items())
    found = [float(np.median(ratio)) for ratio in ratios]
    return pytest.approx(found, rel=1e-4)


def test_the_scale_is_that_of_peft(factors, tmp_path):
    """Of its own layers: the module to_q, and the convolution."""
    for settings in (
        {},
        dict(lora_alpha=6),
        dict(lora_alpha=6, use_rslora=True),
        dict(lora_alpha=6, alpha_pattern={"to_q": 2}, rank_pattern={"conv": 3}),
        dict(lora_alpha=6, alpha_pattern={"^conv": 5, "q": 7}, init_lora_weights="gaussian"),
    ):
        model = torch.nn.ModuleDict(
            dict(mid=torch.nn.ModuleDict(dict(to_q=torch.nn.Linear(5, 7))))
            | dict(conv=torch.nn.Conv2d(4, 6, 3))
        )
        config = peft.LoraConfig(r=RANK, target_modules=["to_q", "conv"], **settings)
        adapted = peft.get_peft_model(model, config).base_model.model
        theirs = [x.scaling["default"] for x in (adapted.mid.to_q, adapted.conv)]
        saved = json.loads(json.dumps(config.to_dict(), default=list))
        assert theirs == scaled(factors, tmp_path, **saved), settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("init_lora_weights", x) for x in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")),
        *(("init_lora_weights", x) for x in ("lora_ga", "novelty", 3)),
        *(("use_dora", True), ("fan_in_fan_out", True), ("bias", "all"), ("lora_bias", True)),
        *(("modules_to_save", ["conv"]), ("layer_replication", [[0, 1]]), ("use_qalora", True)),
        *(("target_parameters", ["a"]), ("trainable_token_indices", [1]), ("novelty", 1)),
        *(("peft_type", "LOHA"), ("alpha_pattern", {"(a+)+$": 2}), ("alpha_pattern", [2])),
        *(("use_rslora", 2), ("lora_alpha", "6"), ("lora_alpha", float("inf"))),
    ],
)
def test_settings_that_change_the_meaning_are_refused_by_name(factors, tmp_path, name, value):
    with pytest.raises(UserError, match=name) as error:
        scaled(factors, tmp_path, **{"lora_alpha": 6, name: value})
    assert "\n" not in str(error.value)


def test_every_setting_of_peft_is_known(factors, tmp_path):
    """A config with every entry at its default is read, and an unknown entry that is off too."""
    settings = json.loads(json.dumps(peft.LoraConfig(r=RANK).to_dict(), default=list))
    assert len(settings) > 30
    assert scaled(factors, tmp_path, **settings, novelty=None) == [8 / RANK] * 2


# Other kinds of factors --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loha", "loha_tucker", "lokr", "lokr_full", "lokr_tucker", "mid"])
def test_lycoris_is_read_as_peft_computes_it(kind, tmp_path):
    """Products of factors of a dense layer and of a convolution, with alpha unlike the rank."""
    torch.manual_seed(0)
    shapes = {"denoiser/mid/to_q/kernel": (6, 8), "denoiser/conv/kernel": (3, 3, 4, 6)}
    base = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    layers = dict(to_q=torch.nn.Linear(6, 8), conv=torch.nn.Conv2d(4, 6, 3))
    model = torch.nn.ModuleDict(
        dict(mid=torch.nn.ModuleDict(dict(to_q=layers["to_q"]))) | dict(conv=layers["conv"])
    )
    held, deltas = {}, {}
    if kind == "mid":
        down, mid, up = torch.randn(2, 4, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(6, 2, 1, 1)
        held |= {"lora_unet_conv.lora_down.weight": down, "lora_unet_conv.lora_mid.weight": mid}
        held |= {"lora_unet_conv.lora_up.weight": up, "lora_unet_conv.alpha": torch.tensor(3.0)}
        x = torch.randn(1, 4, 5, 5)
        out = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down), mid)
        wanted = torch.nn.functional.conv2d(out, up) * 1.5
        adapter, _ = read_adapter(write(held, tmp_path), base)
        found = np.asarray(merge(base, adapter, 1.0)["denoiser/conv/kernel"])
        got = torch.nn.functional.conv2d(x, torch.tensor(found).permute(3, 2, 0, 1))
        return torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    options = dict(r=2, alpha=3, target_modules=["to_q", "conv"], init_weights=False)
    if kind.startswith("loha"):
        config = peft.LoHaConfig(**options, use_effective_conv2d=kind == "loha_tucker")
    else:
        tucker, full = kind == "lokr_tucker", kind == "lokr_full"
        options |= dict(r=20) if full else {}
        config = peft.LoKrConfig(
            **options, use_effective_conv2d=tucker, decompose_both=False, decompose_factor=2
        )
    adapted = peft.get_peft_model(model, config).base_model.model
    for name, layer in (("mid_to_q", adapted.mid.to_q), ("conv", adapted.conv)):
        for key, value in layer.state_dict().items():
            if key.endswith(".default"):
                value.normal_()
                factor = f"lora_unet_{name}.{key.removesuffix('.default')}"
                held[factor] = value.clone().contiguous()
        # Without decomposed factors LyCORIS has no scale.
        decomposed = any(key.endswith(("_a", "_b")) for key in held if f"_{name}." in key)
        held[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
        delta = layer.get_delta_weight("default").detach()
        deltas[name] = delta if decomposed else delta / layer.scaling["default"]
    adapter, _ = read_adapter(write(held, tmp_path), base)
    merged = merge(base, adapter, 1.0)
    for path, name in (("denoiser/mid/to_q/kernel", "mid_to_q"), ("denoiser/conv/kernel", "conv")):
        wanted = deltas[name].permute(*range(2, deltas[name].ndim), 1, 0)
        assert wanted.abs().max() > 0.01
        np.testing.assert_allclose(np.asarray(merged[path]), wanted, atol=1e-4)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """A product larger than the kernel is refused; one of high rank is computed whole."""
    big = torch.ones(3000, 3000)
    for held, words in (
        ({"lora_unet_mid_to_q.lokr_w1": big, "lora_unet_mid_to_q.lokr_w2": big}, "do not fit"),
        ({f"lora_unet_mid_to_q.hada_w{i}_{x}": big for i in (1, 2) for x in "ab"}, "do not fit"),
    ):
        with pytest.raises(UserError, match=words):
            read_adapter(write({k: x.clone() for k, x in held.items()}, tmp_path), BASE)
    shapes = {"a": (7, 3000), "b": (3000, 5)}
    held = {
        f"lora_unet_mid_to_q.hada_w{i}_{x}": torch.randn(shape)
        for i in (1, 2)
        for x, shape in shapes.items()
    }
    adapter, _ = read_adapter(write(held, tmp_path), BASE)
    first, second = (
        held[f"lora_unet_mid_to_q.hada_w{i}_a"] @ held[f"lora_unet_mid_to_q.hada_w{i}_b"]
        for i in (1, 2)
    )
    found = merge(BASE, adapter, 1.0)["denoiser/mid/to_q/kernel"]
    np.testing.assert_allclose(np.asarray(found), (first * second).T, rtol=1e-3)


def write(tensors, folder):
    save_file(tensors, folder / "lyco.safetensors")
    return str(folder / "lyco.safetensors")
