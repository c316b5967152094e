"""Single files in the layout that Stable Diffusion 1.5 and XL base were first published in, read as
if they were diffusers' folders.

Such a file holds the denoiser, the autoencoder and the text encoders under prefixes and in keys of
its own: blocks are counted through (``input_blocks.7.1``) instead of by stage and layer, attention
in the autoencoder is 1 x 1 convolutions, and OpenCLIP has queries, keys and values in one matrix.
Configs, noise and tokenizers are not in it: the first two are the family's, as published.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.huggingface import find_folder
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.safetensors_io import open_safetensors
from emu_jax.errors import UserError
from emu_jax.interop.files import CONFIG, DIFFUSERS, open_pickle, read_json
from emu_jax.interop.single_file_families import PREFIXES, Family, family_of
from emu_jax.nn.torch_layout import torch_paths
from emu_jax.text.clip import text_network, tower_key

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_TOKENIZER = "tokenizer_config.json"
# Padding of the two tokenizers, whose vocabulary is one.
_PAD = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
# Of a training run or a sampler, and of no effect on the networks.
_ASIDE = re.compile(
    r"model_ema\..*|denoiser\.sigmas|betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod"
    r"(_prev)?|posterior_.*|lvlb_weights|logvar|.*\.position_ids|.*\.embedders\.1\.model\.logit_scale"
)
# What a key becomes: new key -> what is done to the tensor.
Pieces = dict[str, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class SingleFile:
    """The parts of a file, as :class:`emu_jax.interop.components.Parts`."""

    file: Path
    tensors: Lazy
    family: Family
    tokenizer: Path
    averaged: bool = False

    def where(self, name: str = "") -> str:
        return f"{self.file} ({name})" if name else str(self.file)

    def settings(self, name: str = "", file: str = CONFIG) -> dict[str, Any]:
        if file == _TOKENIZER:
            return read_json(self.tokenizer / file)
        return dict(self.family.settings[name])

    def weights(self, name: str = "", stem: str = DIFFUSERS) -> Lazy:
        """A part's tensors, in today's keys.

        Raises:
          UserError: a tensor that is there twice, or lacks its average.
        """
        del stem
        prefix = self.family.prefixes[name]
        found: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
        for key in self.tensors:
            if not key.startswith(prefix) or _ASIDE.fullmatch(key):
                continue
            kept = averaged_key(key) if self.averaged and name == "unet" else key
            if kept not in self.tensors:
                raise UserError(f"{self.file} has no average of {key}.")
            for new, fit in self._pieces(name, key.removeprefix(prefix)).items():
                if new in found:
                    raise UserError(f"{self.file} holds {new} twice, as {found[new][0]} and {key}.")
                found[new] = kept, fit

        def shape(key: str, fit: Callable[[np.ndarray], np.ndarray]) -> jax.ShapeDtypeStruct:
            whole = self.tensors.shapes[key]
            # One number seen everywhere: as large as it has to be, without the memory.
            seen = fit(np.broadcast_to(np.zeros((), whole.dtype), whole.shape))
            return jax.ShapeDtypeStruct(seen.shape, whole.dtype)

        def read(name: str) -> np.ndarray:
            key, fit = found[name]
            return np.ascontiguousarray(fit(self.tensors[key]))

        return Lazy({new: shape(*place) for new, place in found.items()}, read)

    def _pieces(self, name: str, key: str) -> Pieces:
        settings = self.family.settings[name]
        if name == "unet":
            return {unet_key(key, settings["layers_per_block"]): _same}
        if name == "vae":
            return autoencoder_pieces(key, len(settings["block_out_channels"]))
        return {key: _same} if name == "text_encoder" else openclip_pieces(key)

    def copy_tokenizer(self, name: str, target: Path) -> None:
        from transformers import CLIPTokenizer  # takes seconds

        made = CLIPTokenizer.from_pretrained(str(self.tokenizer), pad_token=_PAD[name])
        made.save_pretrained(str(target))


def open_single_file(
    file: Path, tokenizer: str, variant: str = "", pickle: bool = False
) -> SingleFile:
    """The parts of a safetensors file, or of a pickle where that is allowed."""
    plain = file.suffix == ".safetensors"
    tensors = open_safetensors(str(file)) if plain else open_pickle(file, pickle)
    return parts_of(file, tensors, tokenizer, variant)


def parts_of(file: Path, tensors: Lazy, tokenizer: str, variant: str = "") -> SingleFile:
    """The parts of ``file``; ``tokenizer``: folder or hub name of CLIP's. ``variant`` says which
    denoiser is meant where there are two, that of the steps (non_ema) or their average (ema).

    Raises:
      UserError: neither family, keys that are of no part of it, text encoders that do not fit.
    """
    family = family_of(file, tensors.shapes)
    strange = [
        key
        for key in tensors
        if not key.startswith(tuple(family.prefixes.values())) and not _ASIDE.fullmatch(key)
    ]
    if strange:
        names = ", ".join(sorted(strange)[:8])
        raise UserError(f"{file}: {len(strange)} keys are no part of {family.name}: {names}.")
    averages = averaged_key(PREFIXES["unet"] + "out.2.bias") in tensors
    if averages != (variant in ("ema", "non_ema")) or variant not in ("", "ema", "non_ema"):
        known = "--variant=ema and --variant=non_ema" if averages else "none, so no --variant"
        raise UserError(f"{file} has weights of variant {known}: say which is meant.")
    if not tokenizer:
        raise UserError(
            f"{file} holds no tokenizer: name CLIP's with --tokenizer=DIR, a folder or hub name, "
            "such as any pipeline's tokenizer folder."
        )
    folder = find_folder(tokenizer, weights=False)
    read_json(folder / _TOKENIZER)
    source = SingleFile(file, tensors, family, folder, variant == "ema")
    for name in family.text_encoders:
        _check_text(source, name)
    return source


def averaged_key(key: str) -> str:
    """Where the running average of a denoiser's tensor is kept."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def _check_text(source: SingleFile, name: str) -> None:
    settings = source.settings(name)
    projection = settings["projection_dim"] if name == "text_encoder_2" else None
    found = source.weights(name).shapes
    try:
        torch_paths(
            {tower_key("text", key) or key: shape for key, shape in found.items()},
            text_network(settings, projection).shapes(),
        )
    except UserError as error:
        raise UserError(f"{source.where(name)}: {error}") from None


# Keys --------------------------------------------------------------------------------------------

_LAYERS = {
    **{f"time_embed.{2 * i}": f"time_embedding.linear_{i + 1}" for i in range(2)},
    **{f"label_emb.0.{2 * i}": f"add_embedding.linear_{i + 1}" for i in range(2)},
    **{"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"},
}
_RESIDUAL = {
    **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
    **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPENCLIP = {
    **{"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"},
    **{"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
}
_OPENCLIP_EMBEDDINGS = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
}


def unet_key(key: str, layers: int) -> str:
    """A denoiser's key. A stage has ``layers`` blocks and one of resampling on its way down, and on
    its way up one more block, the last of which resamples; unknown keys stay as they are.
    """
    module, _, leaf = key.rpartition(".")
    if module in _LAYERS:
        return f"{_LAYERS[module]}.{leaf}"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", module):
        i, rest = int(found[1]), found[2]
        place = "mid_block.attentions.0" if i == 1 else f"mid_block.resnets.{i // 2}"
    elif found := re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", module):
        side, rest = {"input": "down", "output": "up"}[found[1]], found[4]
        stage, layer = divmod(int(found[2]) - (side == "down"), layers + 1)
        if rest in ("op", "conv"):
            return f"{side}_blocks.{stage}.{side}samplers.0.conv.{leaf}"
        kind = "resnets" if found[3] == "0" else "attentions"
        place = f"{side}_blocks.{stage}.{kind}.{layer}"
    else:
        return key
    return f"{place}.{_RESIDUAL.get(rest, rest)}.{leaf}"


def autoencoder_pieces(key: str, stages: int) -> Pieces:
    """An autoencoder's tensor. Its stages on the way up are counted from the finest one."""
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(\w+)", key):
        name = _ATTENTION.get(found[2], found[2])
        return {f"{found[1]}.mid_block.attentions.0.{name}.{found[3]}": _dense}
    key = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", key)
    key = re.sub(r"\.down\.(\d)", r".down_blocks.\1", key)
    key = re.sub(r"\.up\.(\d)", lambda m: f".up_blocks.{stages - 1 - int(m[1])}", key)
    key = re.sub(r"\.(down|up)sample\.", r".\1samplers.0.", key)
    key = key.replace(".norm_out.", ".conv_norm_out.").replace("nin_shortcut", "conv_shortcut")
    return {key.replace(".block.", ".resnets."): _same}


def openclip_pieces(key: str) -> Pieces:
    """An OpenCLIP text tower's tensor, of which attention's fused one becomes three."""
    if key == "text_projection":
        return {"text_projection.weight": np.transpose}
    if key in _OPENCLIP_EMBEDDINGS:
        return {_OPENCLIP_EMBEDDINGS[key]: _same}
    key = re.sub(r"^ln_final\.", "text_model.final_layer_norm.", key)
    if not (found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", key)):
        return {key: _same}
    layer, rest, leaf = f"text_model.encoder.layers.{found[1]}", found[2], found[3]
    if rest == "attn.in_proj":
        names = (f"{layer}.self_attn.{x}_proj.{leaf}" for x in "qkv")
        return {name: partial(_third, i) for i, name in enumerate(names)}
    return {f"{layer}.{_OPENCLIP.get(rest, rest)}.{leaf}": _same}


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _dense(x: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution's kernel as a dense layer's."""
    return x[:, :, 0, 0] if x.shape[2:] == (1, 1) else x


def _third(i: int, x: np.ndarray) -> np.ndarray:
    size = len(x) // 3
    return x[i * size : (i + 1) * size]
