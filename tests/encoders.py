"""Small CLIP and T5 folders, written by transformers itself with random weights and a small real
tokenizer. A helper, not a test.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
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
