"""Adapters of every importable denoiser: diffusers and peft load ours, we load theirs, and one call
of either network is the same.
"""

import inspect
from dataclasses import dataclass

import diffusers
import jax
import numpy as np
import peft
import pipelines
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from roundtrips import QUICK, far
from safetensors.torch import load_file, save_file
from state_dicts import from_torch

from emu_jax.assembly.models import with_adapter
from emu_jax.assembly.sections import generation
from emu_jax.checkpoint.adapters import FILE
from emu_jax.checkpoint.export import Model, save_model
from emu_jax.cli.main import main
from emu_jax.interop import components
from emu_jax.interop.original_keys import unet_original
from emu_jax.nn.functional import Network
from emu_jax.nn.lora import DOWN, UP, Lora
from emu_jax.text.encoder import make_encoder

ATTENTION = generation.Lora().pattern
# Some modules that others adapt, of attention and beyond.
SOME = (".to_q", ".to_v", ".to_out.0", ".add_k_proj", ".net.0.proj", ".proj_in")


@dataclass(frozen=True)
class Kind:
    """``pipeline``: the public one that reads adapters; ``convolution``: one of its modules."""

    denoiser: components.Denoiser
    settings: dict
    convolution: str
    pipeline: str = ""


KINDS = {
    "sd15": Kind(
        components.UNET, pipelines.UNETS["sd15"], "conv_in", pipeline="StableDiffusionPipeline"
    ),
    "sdxl": Kind(
        components.UNET, pipelines.UNETS["sdxl"], "conv_out", pipeline="StableDiffusionXLPipeline"
    ),
    "if": Kind(components.UNET, pipelines.IF_BASE, "conv_in", pipeline="IFPipeline"),
    "amused": Kind(components.UVIT, pipelines.UVIT, "embed.conv"),
    "pixart": Kind(components.PIXART, pipelines.PIXART, "pos_embed.proj"),
    "sd3": Kind(
        components.MMDIT, pipelines.SD3, "pos_embed.proj", pipeline="StableDiffusion3Pipeline"
    ),
}


class Family:
    """A small denoiser of diffusers' with random weights, and ours with the same."""

    def __init__(self, name):
        self.name, self.kind = name, KINDS[name]
        model, denoiser = self.fresh(), self.kind.denoiser
        arguments = denoiser.public.arguments(model.config)
        network = Network(lambda rngs: denoiser.network(**arguments, rngs=rngs))
        params = from_torch(model.state_dict(), network.shapes())
        self.params = {f"denoiser/{path}": value for path, value in params.items()}
        self._call = jax.jit(network, **QUICK)
        self._inputs = inputs(name, model.config)

    def fresh(self):
        torch.manual_seed(0)
        kind = getattr(diffusers, self.kind.denoiser.public.CLASS)
        return pipelines.shaken(kind(**self.kind.settings), 0.1)

    def around(self, model):
        """The public pipeline, which to read and write adapters takes no other part."""
        kind = getattr(diffusers, self.kind.pipeline)
        parts = dict.fromkeys(inspect.signature(kind).parameters)
        return kind(**parts | {self.kind.denoiser.folder: model})

    def ours(self, params):
        denoiser = {path.removeprefix("denoiser/"): value for path, value in params.items()}
        x, t, context, vector = self._inputs
        return self._call(denoiser, x, t, context, None, vector)

    @torch.no_grad()
    def theirs(self, model):
        x, t, context, vector = (None if x is None else torch.tensor(x) for x in self._inputs)
        if self.name == "amused":
            told = vector.split([self.kind.settings["cond_embed_dim"], 20], 1)[0], torch.zeros(2, 5)
            return model(x, context, *told).permute(0, 2, 3, 1)
        call = dict(encoder_hidden_states=context, timestep=t)
        if self.name == "sdxl":
            told = dict(text_embeds=vector[:, :16], time_ids=torch.zeros(2, 6))
            call["added_cond_kwargs"] = told
        elif self.name == "sd3":
            call["pooled_projections"] = vector
        return model(x.permute(0, 3, 1, 2), **call).sample.permute(0, 2, 3, 1)


def inputs(name, settings):
    """(x, t, context, vector); sizes that a network is told are 0, whose cosines are 1."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    sizes = lambda count, width: np.tile(np.repeat(np.float32([[1, 0]]), width, 1), (2, count))  # noqa: E731
    x, t, vector = draw(2, 8, 8, settings["in_channels"]), np.float32([7, 801]), None
    width = settings.get("encoder_hid_dim") or settings.get("cross_attention_dim")
    if name == "amused":
        x, width = rng.integers(0, pipelines.CODES, (2, 5, 5)), settings["encoder_hidden_size"]
        vector = np.concatenate([draw(2, settings["cond_embed_dim"]), sizes(5, 2)], 1)
    elif name == "sdxl":
        vector = np.concatenate([draw(2, 16), sizes(6, 4)], 1)
    elif name == "sd3":
        width = settings["joint_attention_dim"]
        vector = draw(2, settings["pooled_projection_dim"])
    return x, t, draw(2, 5, width), vector


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    return Family(request.param)


@pytest.fixture(scope="module")
def base(family):
    """What diffusers' network says without an adapter, as ours does."""
    output = family.theirs(family.fresh())
    assert far(family.ours(family.params), output) < 1e-4
    return output


def test_ours_is_loaded_by_diffusers_and_peft(family, base, tmp_path):
    """Attention and a convolution, exported as a run's; where diffusers has no loader, peft has."""
    lora = Lora(3, 5.0, f"{ATTENTION}|denoiser/{family.kind.convolution.replace('.', '/')}/kernel")
    factors = {
        path: np.float32(0.2 * np.random.standard_normal(value.shape))
        for path, value in lora.init(jax.random.key(0), family.params).items()
    }
    config = dict(denoiser=dict(kind=family.kind.denoiser.kind), init_from="base", lora=vars(lora))
    save_model(f"{tmp_path}/run", factors, config, dict(step=1), dtype=None)
    out = tmp_path / "out"
    arguments = ["export", f"{tmp_path}/run", f"--out={out}", "--adapter", "--dtype=float32"]
    assert main(arguments) == 0

    model, held = family.fresh(), load_file(out / FILE)
    if family.kind.pipeline:
        family.around(model).load_lora_weights(out)
    elif family.name == "amused":
        model.load_lora_adapter(out, prefix="transformer", use_safetensors=True)
    else:
        lone = {key.removeprefix("transformer."): value for key, value in held.items()}
        modules = sorted({key.rpartition(".lora_")[0] for key in lone})
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=3, lora_alpha=3, target_modules=modules), model
        )
        assert not peft.set_peft_model_state_dict(model, lone).unexpected_keys
    adapted = [name for name, _ in model.named_modules() if name.endswith(".base_layer")]
    assert 2 * len(adapted) == len(held) and f"{family.kind.convolution}.base_layer" in adapted
    expected = family.theirs(model)
    error = far(family.ours(lora.merged(family.params, factors)), expected)
    print(f"{family.name}: ours, read by them, differs by {error:.1e}")
    assert far(base, expected) > 0.05 and error < 1e-4


def test_theirs_is_read(family, base, tmp_path):
    """Dense layers and convolutions, alpha unlike the rank, in each way there is to save it."""
    model = family.fresh()
    modules = [name for name, _ in model.named_modules() if name.endswith(SOME)]
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=[*modules, family.kind.convolution],
        init_lora_weights=False,
    )
    if family.name == "pixart":
        whole = peft.get_peft_model(model, config)
        whole.save_pretrained(tmp_path / "peft")
    else:
        model.add_adapter(config)
        model.save_lora_adapter(tmp_path / "lone")
    if family.kind.pipeline:
        prefix, layers = family.kind.denoiser.folder, get_peft_model_state_dict(model)
        before = convert_state_dict_to_diffusers(layers)
        assert any(".lora.down." in name for name in before)
        for name, tensors in dict(today=layers, before=before).items():
            said = _collate_lora_metadata({prefix: model}) | {f"{prefix}_lora_layers": tensors}
            family.around(model).save_lora_weights(tmp_path / name, **said)
    expected, errors = family.theirs(model), {}
    ours = Model(family.params, {}, {}, "")
    for folder in tmp_path.iterdir():
        read = with_adapter(ours, str(folder))[0].params
        errors[folder.name] = far(family.ours(read), expected)
    print(f"{family.name}: theirs, read by us, differs by", errors)
    assert len(errors) == (3 if family.kind.pipeline else 1)
    assert far(base, expected) > 0.05 and max(errors.values()) < 1e-4


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_oldest_spelling_is_read_as_diffusers_reads_it(prefix, tmp_path):
    """Of attention's processors; alpha is the rank."""
    model, old = diffusers.UNet2DConditionModel(**pipelines.UNETS["sd15"]), {}
    for name, module in model.named_modules():
        if name.endswith((".to_q", ".to_out.0")):
            attention, _, leaf = name.removesuffix(".0").rpartition(".")
            where, (out, into) = f"{prefix}{attention}.processor.{leaf}_lora", module.weight.shape
            old |= {f"{where}.down.weight": torch.randn(3, into)}
            old |= {f"{where}.up.weight": torch.randn(out, 3)}
    save_file(old, tmp_path / FILE)
    params = {
        f"denoiser/{name.removesuffix('.weight').replace('.', '/')}/kernel": value.T.numpy()
        for name, value in model.state_dict().items()
        if value.ndim == 2
    }
    read = with_adapter(Model(params, {}, {}, ""), str(tmp_path))[0].params
    model.load_lora_adapter(old, prefix=prefix.removesuffix(".") or None)
    model.fuse_lora()
    fused = model.state_dict()
    changed = [name for name in fused if name.endswith(".base_layer.weight")]
    assert 2 * len(changed) == len(old)
    for name in changed:
        path = f"denoiser/{name.replace('.base_layer.weight', '/kernel').replace('.', '/')}"
        np.testing.assert_allclose(read[path].T, fused[name], atol=1e-5)


# Modules in kohya's names: of Stable Diffusion XL in those of the original layout.
KOHYA = {
    "sd15": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "unet",
        "lora_unet_mid_block_attentions_0_proj_in": "unet",
        "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_ff_net_0_proj": "unet",
        "lora_unet_up_blocks_1_resnets_0_conv2": "unet",
        "lora_unet_down_blocks_0_downsamplers_0_conv": "unet",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder",
        "lora_te_text_model_encoder_layers_1_mlp_fc2": "text_encoder",
    },
    "sdxl": {
        "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k": "unet",
        "lora_unet_middle_block_1_proj_out": "unet",
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_out_0": "unet",
        "lora_unet_input_blocks_1_0_in_layers_2": "unet",
        "lora_unet_input_blocks_2_0_op": "unet",
        "lora_unet_output_blocks_1_2_conv": "unet",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": "text_encoder",
        "lora_te2_text_model_encoder_layers_1_self_attn_v_proj": "text_encoder_2",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2",
    },
}


@pytest.mark.parametrize("name", KOHYA)
def test_kohyas_layout_is_read_as_diffusers_reads_it(name, tmp_path):
    """U-Net, convolutions and text encoders."""
    folder = pipelines.write(name, tmp_path)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipe, part)]
    before = {part: dict(getattr(pipe, part).state_dict()) for part in parts}
    before = {part: {k: x.clone() for k, x in state.items()} for part, state in before.items()}
    encoders = {
        part.replace("text_encoder", "clip"): make_encoder("clip", 20, path=folder / part)
        for part in parts[1:]
    }
    params = {
        f"denoiser/{key.removesuffix('.weight').replace('.', '/')}/kernel": x.numpy().transpose(
            *range(2, x.ndim), 1, 0
        )
        for key, x in before["unet"].items()
        if key.endswith(".weight") and x.ndim > 1
    }
    model = Model(params, {}, {}, "")
    original = unet_original(before["unet"])
    dotted = [path.removeprefix("denoiser/").removesuffix("/kernel") for path in params]
    homes = {original(m.replace("/", ".")).replace(".", "_"): m for m in dotted}
    homes |= {module.replace("/", "_"): module for module in dotted}
    torch.manual_seed(1)
    tensors = {}
    for module, part in KOHYA[name].items():
        short = module.split("_", 2)[2]
        if part == "unet":
            *window, into, out = params[f"denoiser/{homes[short]}/kernel"].shape
        else:
            state = before[part].items()
            flat = {key.removesuffix(".weight").replace(".", "_"): x.shape for key, x in state}
            flat |= {f"text_model_{key}": shape for key, shape in flat.items()}
            window, (out, into) = [], flat[short]
        tensors |= {f"{module}.lora_down.weight": torch.randn(3, into, *window)}
        tensors |= {f"{module}.lora_up.weight": torch.randn(out, 3, *(1 for _ in window))}
        # diffusers only finds the alphas of all modules if they are equal.
        tensors |= {f"{module}.alpha": torch.tensor([2.0])}
    save_file(tensors, tmp_path / FILE)
    merged, texts = with_adapter(model, str(tmp_path), 0.5, encoders)

    pipe.load_lora_weights({k: x for k, x in tensors.items() if k.startswith("lora_unet_")})
    pipe.fuse_lora(components=["unet"], lora_scale=0.5)
    pipe.unload_lora_weights()
    changed = {part: 0 for part in parts}
    for key, wanted in pipe.unet.state_dict().items():
        if not torch.equal(wanted, before["unet"][key]):
            ours = merged.params[f"denoiser/{key.removesuffix('.weight').replace('.', '/')}/kernel"]
            ours = ours.transpose(-1, -2, *range(ours.ndim - 2))
            np.testing.assert_allclose(ours, wanted, atol=1e-4, err_msg=key)
            changed["unet"] += 1
    # Text encoders: diffusers and transformers 5 disagree on their names, so this is the formula.
    for module, part in KOHYA[name].items():
        if part == "unet":
            continue
        own = texts[part.replace("text_encoder", "clip")]
        short = module.split("_", 2)[2].removeprefix("text_model_")
        (down,) = (
            path
            for path in own
            if f"/{DOWN}/" in path
            and path.partition("/lora_")[0].replace("/", "_").removeprefix("text_model_") == short
        )
        found = own[down] @ own[down.replace(DOWN, UP)]
        factors = (tensors[f"{module}.lora_{x}.weight"] for x in ("up", "down"))
        wanted = 0.5 * 2 / 3 * torch.matmul(*factors).T
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        changed[part] += 1
    assert changed == {part: list(KOHYA[name].values()).count(part) for part in parts}
    assert sum(len(own) for own in texts.values()) == 2 * sum(changed[part] for part in parts[1:])


def test_kohyas_layout_is_written_as_diffusers_reads_it(tmp_path):
    model, config = diffusers.UNet2DConditionModel(**pipelines.UNETS["sd15"]), {}
    lora, params = Lora(3, 5.0, f"{ATTENTION}|denoiser/conv_in/kernel"), {}
    for key, x in model.state_dict().items():
        if key.endswith(".weight") and x.ndim > 1:
            path = f"denoiser/{key.removesuffix('.weight').replace('.', '/')}/kernel"
            params[path] = x.numpy().transpose(*range(2, x.ndim), 1, 0)
    factors = {
        path: np.float32(0.2 * np.random.standard_normal(value.shape))
        for path, value in lora.init(jax.random.key(0), params).items()
    }
    config = dict(denoiser=dict(kind="unet"), init_from="base", lora=vars(lora))
    save_model(f"{tmp_path}/run", factors, config, dict(step=1), dtype=None)
    arguments = ["export", f"{tmp_path}/run", f"--out={tmp_path}/out", "--dtype=float32"]
    assert main([*arguments, "--adapter", "--format=kohya"]) == 0
    held = load_file(tmp_path / "out" / FILE)
    assert {key.rpartition(".lora_")[0] or key.removesuffix(".alpha") for key in held} == {
        "lora_unet_" + path.split("/", 1)[1].removesuffix("/kernel").replace("/", "_")
        for path in lora.targets(params)
    }
    wanted = lora.merged(params, factors)
    ours = with_adapter(Model(params, {}, {}, ""), str(tmp_path / "out"))[0].params
    kind = diffusers.StableDiffusionPipeline
    pipe = kind(**dict.fromkeys(inspect.signature(kind).parameters) | dict(unet=model))
    pipe.load_lora_weights(tmp_path / "out")
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    fused = model.state_dict()
    for path, value in wanted.items():
        key = path.removeprefix("denoiser/").removesuffix("/kernel").replace("/", ".") + ".weight"
        theirs = fused[key].permute(*range(2, fused[key].ndim), 1, 0)
        np.testing.assert_allclose(theirs, value, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(ours[path], value, atol=1e-5, err_msg=key)
    assert main([*arguments, "--format=kohya"]) == 2
