"""Small CLIP, T5, LLaMA and BLIP folders, written by transformers itself with random weights and a
small real tokenizer, and a GGUF file. A helper, not a test.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

START, END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = "!,.0123456789abcdefghijklmnopqrstuvwxyz"
_MERGES = ("r e", "re d</w>", "f o", "fo x</w>", "c a", "ca t</w>")


def clip_vocabulary() -> dict[str, int]:
    """Letters, letters that end a word, merges, start and end: "!" is 0, the end is the highest."""
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    words += [pair.replace(" ", "") for pair in _MERGES]
    return {word: i for i, word in enumerate([*words, START, END])}


def clip_tokenizer(folder: Path, pad: str = END) -> None:
    """The files of public folders, vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )


def _text_sizes(**changes) -> dict:
    vocabulary = clip_vocabulary()
    sizes = dict(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=20,
        projection_dim=10,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=1,
    )
    return sizes | changes


def _shaken(model):
    """Norms and biases are no longer ones and zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def clip_text(folder: Path, *, projection: bool = False, pad: str = END, shard="5GB", **changes):
    """A text model with or without projection; the torch model."""
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    model = _shaken(kind(CLIPTextConfig(**_text_sizes(**changes))))
    model.save_pretrained(folder, max_shard_size=shard)
    clip_tokenizer(folder, pad)
    return model


def clip_whole(folder: Path, **changes) -> CLIPModel:
    """Both towers, of different widths, and projections to another."""
    vision = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2)
    config = CLIPConfig(
        text_config=_text_sizes(**changes),
        vision_config=dict(vision, image_size=12, patch_size=4, hidden_act="gelu"),
        projection_dim=14,
    )
    model = _shaken(CLIPModel(config))
    model.save_pretrained(folder)
    # As transformers 5 writes a tokenizer: one file, tokenizer.json.
    clip_tokenizer(folder / "old")
    CLIPTokenizer.from_pretrained(str(folder / "old")).save_pretrained(folder)
    return model


def clip_vision(folder: Path) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=10,
        patch_size=4,
        projection_dim=6,
    )
    model = _shaken(CLIPVisionModelWithProjection(config))
    model.save_pretrained(folder)
    return model


def respell(folder: Path, **extra: torch.Tensor) -> None:
    """Rewrites a text model's file as public ones are: all under ``text_model.``, with
    ``position_ids``, and ``extra`` tensors.
    """
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors = {f"text_model.{key.removeprefix('text_model.')}": x for key, x in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    safetensors.torch.save_file(tensors | extra, file)


def t5(folder: Path, *, whole: bool = False, shard="5GB", **changes):
    """A T5 v1.1 encoder, or a ``whole`` model with a decoder; the torch model."""
    sizes = dict(
        vocab_size=50,
        d_model=24,
        d_kv=5,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    kind = T5ForConditionalGeneration if whole else T5EncoderModel
    torch.manual_seed(0)
    model = kind(T5Config(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5).add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    pieces = [(piece, -6.0) for piece in ("▁", *"abcdefghijklmnopqrstuvwxyz")]
    pieces += [(piece, -4.0) for piece in ("▁a", "▁red", "▁fox", "▁cat")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    T5Tokenizer(vocab=special + pieces, extra_ids=3).save_pretrained(folder)
    return model


def llama(folder: Path, *, whole: bool = False, shard="5GB", **changes) -> LlamaModel:
    """A LLaMA with grouped keys; a ``whole`` one has the matrix of the logits. The torch model, and
    in its folder a byte-level tokenizer that starts every text with a token of its own.
    """
    sizes = dict(
        vocab_size=70,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = (LlamaForCausalLM if whole else LlamaModel)(LlamaConfig(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder, max_shard_size=shard)
    letters = ["<s>", "Ġ", *"abcdefghijklmnopqrstuvwxyz", "Ġr", "Ġre", "Ġred", "fo", "fox"]
    merges = [("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("f", "o"), ("fo", "x")]
    tokenizer = Tokenizer(models.BPE({x: i for i, x in enumerate(letters)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return model.model if whole else model


BLIP_WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "picture",
    "of",
    "red",
    "fox",
    "##es",
)


def blip(folder: Path, **changes: Any) -> BlipForConditionalGeneration:
    """A captioner with 60 words, of which [DEC], the last one, begins every text; ``changes`` are
    of its text section. Its captions differ between images and have several lengths.
    """
    text = dict(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=20,
        bos_token_id=59,
        sep_token_id=3,
        pad_token_id=0,
        initializer_range=0.4,
    )
    vision = dict(
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    config = BlipConfig(text_config=text | changes, vision_config=vision)
    model = _shaken(BlipForConditionalGeneration(config).eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "crossattention.output.dense" in name or "crossattention.self.value" in name:
                parameter.mul_(2)
        model.text_decoder.bert.embeddings.word_embeddings.weight[3] *= 2
    model.save_pretrained(folder)
    words = [*BLIP_WORDS, *(f"word{i}" for i in range(59 - len(BLIP_WORDS))), "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return model


def gguf(file: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple]) -> None:
    """A GGUF file. ``tensors``: name -> (number of the kind, shape in torch's order, bytes)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(x: Any) -> bytes:
        if isinstance(x, list):
            items = [value(item) for item in x]
            return (
                struct.pack("<I", 9)
                + items[0][:4]
                + struct.pack("<Q", len(x))
                + b"".join(item[4:] for item in items)
            )
        kinds = {bool: (7, "<?"), int: (5, "<i"), float: (6, "<f")}
        if isinstance(x, str):
            return struct.pack("<I", 8) + text(x)
        number, code = kinds[type(x)]
        return struct.pack("<I", number) + struct.pack(code, x)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(x) for key, x in metadata.items())
    body = b""
    for name, (kind, shape, data) in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + sizes + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    file.write_bytes(head + bytes(-len(head) % 32) + body)


# Bytes of one block of each kind, and where in it are the fp16 numbers that scale it.
_BLOCKS = {
    **{0: (1, 4, ()), 1: (1, 2, (0,)), 2: (32, 18, (0,)), 3: (32, 20, (0, 2)), 8: (32, 34, (0,))},
    **{12: (256, 144, (0, 2)), 14: (256, 210, (208,)), 30: (1, 2, ())},
}
# A vocabulary as SentencePiece writes it: type and score.
_PIECES = [
    *(("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)),
    *((f"<0x{i:02X}>", 6, 0.0) for i in range(256)),
    *((piece, 1, -float(i)) for i, piece in enumerate(("▁a", "re", "▁red", "fo", "fox", "▁fox"))),
    *((piece, 1, -float(i)) for i, piece in enumerate("▁abcdefghijklmnopqrstuvwxyz", 6)),
]


def quantized(kind: int, shape: tuple[int, ...], seed: int) -> tuple:
    """(kind, shape, bytes) of random numbers of about 0.1."""
    values, size, scales = _BLOCKS[kind]
    chance, count = np.random.default_rng(seed), int(np.prod(shape))
    if kind in (0, 30):
        whole = (0.1 * chance.normal(size=count)).astype(np.float32)
        return kind, shape, (whole if kind == 0 else whole.view("<u2")[1::2]).tobytes()
    blocks = chance.integers(0, 256, (count // values, size), dtype=np.uint8)
    for place in scales:
        half = chance.normal(size=(len(blocks), 1)) * (1e-4 if values == 256 else 1e-2)
        blocks[:, place : place + 2] = half.astype(np.float16).view(np.uint8)
    return kind, shape, blocks.tobytes()


def llama_gguf(file: Path, **changes: Any) -> None:
    """A LLaMA of two blocks with grouped keys, its tensors of every kind, as llama.cpp writes it;
    and a SentencePiece tokenizer.
    """
    pieces, types, scores = (list(column) for column in zip(*_PIECES, strict=True))
    metadata = {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    shapes = {"token_embd.weight": (len(pieces), 256), "output_norm.weight": (256,)}
    for i in range(2):
        for part, shape in {
            **dict.fromkeys(("attn_norm", "ffn_norm"), (256,)),
            **dict.fromkeys(("attn_q", "attn_output"), (256, 256)),
            **dict.fromkeys(("attn_k", "attn_v"), (128, 256)),
            **dict.fromkeys(("ffn_gate", "ffn_up"), (512, 256)),
            "ffn_down": (256, 512),
        }.items():
            shapes[f"blk.{i}.{part}.weight"] = shape
    kinds = [2, 3, 8, 12, 14, 30, 1]
    tensors = {
        name: quantized(0 if len(shape) == 1 else kinds[seed % 7], shape, seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    gguf(file, {key: x for key, x in (metadata | changes).items() if x is not None}, tensors)


def scores(opened, squares, prompts):
    """Standardized scores of a published reward, as ``PUBLISHED`` opens it, for images of its own
    size, 0 to 255.
    """
    import jax.numpy as jnp

    from emu_jax.tasks.rewards import standardized

    params, image = dict(opened.weights.tensors()), jnp.asarray(squares / 127.5 - 1, jnp.float32)
    text = None
    if opened.encoder:
        tokens = opened.encoder.tokenize(prompts)
        words = dict(opened.encoder.tensors())
        text = opened.encoder.apply(words, jnp.asarray(tokens["ids"]), jnp.asarray(tokens["mask"]))
    return standardized(params, opened.reward.score(params, image, text))[:, 0]
