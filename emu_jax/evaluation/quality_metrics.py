"""Metrics of one image each by other published networks: MUSIQ, ImageReward, BRISQUE.

MUSIQ reads images at their own size and at two more; ImageReward crops as CLIP does, to 224 pixels;
BRISQUE (:mod:`emu_jax.evaluation.brisque`) reads them as they are.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emu_jax.errors import UserError
from emu_jax.evaluation.brisque import brisque, load_table
from emu_jax.evaluation.frozen import (
    DEFAULT_WEIGHTS_DIR,
    Frozen,
    by_shape,
    find_weights,
    read_tensors,
    to_params,
)
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.preprocessing import CLIP_MEAN, CLIP_STD, cropped, normalized
from emu_jax.nn.blip import ImageReward as ImageRewardNetwork
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.musiq import Musiq as MusiqNetwork
from emu_jax.text.pretrained import load_tokenizer

MUSIQ = ("musiq_koniq_ckpt-e95806b9.pth", "musiq.safetensors")
IMAGE_REWARD, IMAGE_REWARD_FILE = "ImageReward", "ImageReward.pt"
BRISQUE = "brisque_svm_weights.pt"
IMAGE_REWARD_LENGTH = 35  # tokens of a prompt
_BERT_FILES = (("tokenizer.json",), ("vocab.txt",))
_MUSIQ_BLOCKS = "transformer_encoder.transformer.encoderblock_"


class Musiq:
    """KonIQ's weights by default: 0 to 100."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        file = find_weights(weights, MUSIQ, "IQA-PyTorch's weights for KonIQ-10k")
        tensors = read_tensors(file)
        network = Network(lambda rngs: MusiqNetwork(**_musiq_sizes(tensors), rngs=rngs))
        run = Frozen(
            lambda params, images: network(params, images / 127.5 - 1),
            to_params(network, tensors, file),
        )
        self._scores = lambda images: by_shape(images, lambda x: run(x.astype(np.float32)))

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return self._scores(batch.images)


def _musiq_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    width = len(_tensor(tensors, "embedding.bias"))
    return dict(
        width=width,
        layers=_count(tensors, "norm2.bias"),
        heads=width // 64,
        feed_forward=len(
            _tensor(tensors, "transformer_encoder.transformer.encoderblock_0.mlp.fc1.bias")
        ),
        classes=len(tensors["head.0.bias"]) if "head.0.bias" in tensors else 1,
    )


class ImageReward:
    """The reward of an image for its prompt, standardized: 0 on average, deviation 1."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        source = f"{IMAGE_REWARD_FILE} of THUDM/ImageReward and the tokenizer of BERT"
        self._folder = find_weights(weights, (IMAGE_REWARD,), source)
        network, params, sizes = read_image_reward(self._folder)
        self._side = sizes["image_size"]
        self._length = min(IMAGE_REWARD_LENGTH, sizes["positions"])
        self._run = Frozen(network, params)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer  # takes seconds

        return load_tokenizer(BertTokenizer, self._folder, _BERT_FILES)

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        options = dict(padding="max_length", truncation=True, max_length=self._length)
        tokens = self._tokenizer(list(batch.prompts), **options)
        return self._run(
            normalized(cropped(batch.images, self._side), CLIP_MEAN, CLIP_STD),
            np.array(tokens["input_ids"], np.int32),
            np.array(tokens["attention_mask"], bool),
        )


def read_image_reward(folder: Path) -> tuple[Network, Params, dict[str, int]]:
    """The network in a folder with ImageReward's file, its parameters, and its sizes."""
    file = folder / IMAGE_REWARD_FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {file.name}; put it there, with BERT's tokenizer.")
    tensors = {
        key.removeprefix("blip."): x
        for key, x in read_tensors(file).items()
        if not key.startswith(("blip.vision_proj", "blip.text_proj"))
        and not key.endswith("position_ids")
    }
    sizes = _image_reward_sizes(tensors)
    network = Network(lambda rngs: ImageRewardNetwork(**sizes, rngs=rngs))
    return network, to_params(network, tensors, file), sizes


def _image_reward_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Heads have 64 channels, as in all published BLIPs."""
    vision_width, _, patch, _ = _tensor(tensors, "visual_encoder.patch_embed.proj.weight").shape
    count = _tensor(tensors, "visual_encoder.pos_embed").shape[1] - 1
    vocabulary, width = _tensor(tensors, "text_encoder.embeddings.word_embeddings.weight").shape
    return dict(
        image_size=patch * round(count**0.5),
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=_count(tensors, "attn.qkv.bias"),
        vision_heads=vision_width // 64,
        vocabulary=vocabulary,
        width=width,
        layers=_count(tensors, "crossattention.output.dense.bias"),
        heads=width // 64,
        feed_forward=len(_tensor(tensors, "text_encoder.encoder.layer.0.intermediate.dense.bias")),
        positions=len(_tensor(tensors, "text_encoder.embeddings.position_embeddings.weight")),
    )


class Brisque:
    """The table of the C++ release; that of the MATLAB release where its file is in the folder."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        file = Path(weights).expanduser() / BRISQUE
        self._table = load_table(file if file.is_file() else "")

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return brisque(batch.images, self._table)


def _tensor(tensors: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in tensors:
        raise UserError(f"The weights lack {key}: they are of another network.")
    return tensors[key]


def _count(tensors: Mapping[str, np.ndarray], end: str) -> int:
    return sum(key.endswith(end) for key in tensors)
