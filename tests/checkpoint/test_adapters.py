"""Adapters' files: every way to say what a module's factors count, and files that are refused.

What diffusers and peft themselves write and read: tests/interop/test_adapters.py.
"""

import json

import numpy as np
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


@pytest.mark.parametrize("way", ["unsaid", "said", "said_alone", "alphas", "conditioner", "peft"])
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
        ("half", "lacks one of the two factors of unet.mid.to_q"),
        ("more", "holds unet.mid.to_q.lora_magnitude_vector, which is no factor"),
        ("none", "is no adapter"),
        ("rslora", "says unet.use_rslora, which is not supported"),
        ("patterns", "says unet.alpha_pattern, which is not supported"),
        ("peft", "adapter_config.json says, which is not beside it"),
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
        case "more":
            held["unet.mid.to_q.lora_magnitude_vector"] = torch.ones(7)
        case "none":
            held = {"unet.mid.to_q.weight": torch.ones(7, 5)}
        case "rslora":
            said = {"unet.use_rslora": True, "unet.lora_alpha": 6}
        case "patterns":
            said = {"unet.alpha_pattern": {"mid": 2}}
        case "peft":
            file = "adapter_model.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    save_file(held, tmp_path / file, metadata=metadata)
    with pytest.raises(UserError, match=words):
        read_adapter(str(tmp_path), BASE)
