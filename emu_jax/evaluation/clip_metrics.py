"""Metrics that read images with CLIP: with prompts, with a regression of people's ratings, or as
features of a set.

    metric            CLIP                         column or figure
    clip_score        ViT-B/32                     cosine of image and prompt
    cmmd              ViT-L/14 at 336 pixels       distance to references
    laion_aesthetic   ViT-L/14                     a head on the unit embedding, ratings 1 to 10
    pickscore         ViT-H/14, PickScore's        cosine times the learned scale (about 100)
    hps               ViT-H/14, HPS v2.1's         cosine
    clip_iqa          RN50, no positions           probability of "Good photo." over "Bad photo."

Each resizes images as its reference does (:mod:`emu_jax.evaluation.preprocessing`); CLIP-IQA reads
them at their own size.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from emu_jax.checkpoint.huggingface import weights_of
from emu_jax.checkpoint.safetensors_io import iter_safetensors
from emu_jax.errors import UserError
from emu_jax.evaluation.frozen import (
    DEFAULT_WEIGHTS_DIR,
    Frozen,
    Images,
    Remembered,
    by_shape,
    find_weights,
    read_tensors,
    to_params,
)
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    centered,
    cropped,
    normalized,
    padded,
)
from emu_jax.nn.functional import Network
from emu_jax.nn.openclip import image_tower, text_tower
from emu_jax.nn.score_head import ScoreHead
from emu_jax.text.clip import TOKENIZER_FILES, make_clip, make_clip_images, text_config
from emu_jax.text.pretrained import load_tokenizer

CLIP_SCORE = "clip-vit-base-patch32"
CMMD = "clip-vit-large-patch14-336"
AESTHETIC_CLIP = "clip-vit-large-patch14"
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"
PICKSCORE = "PickScore_v1"
HPS, HPS_FILE = "HPSv2", "HPS_v2.1_compressed.pt"
CLIP_IQA, OPENCLIP_FILE = "resnet50_clip.openai", "open_clip_model.safetensors"
ANTONYMS = ("Good photo.", "Bad photo.")

Embed = Callable[[Any], Float[np.ndarray, "n d"]]


class Towers:
    """The two towers of a CLIP: images and texts to embeddings of length one."""

    def __init__(self, images: Embed, texts: Embed, scale: float):
        self.images, self.scale = Remembered(lambda x: _unit(images(x))), scale
        self._texts = texts

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        return _unit(self._texts(list(texts)))

    def cosines(self, batch: Batch) -> Float[np.ndarray, " n"]:
        """Of each image and its prompt."""
        return np.sum(self.images(batch.images) * self.texts(batch.prompts), axis=1)


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@cache
def open_clip(folder: Path, prepare: Callable[[Images, int], np.ndarray] = cropped) -> Towers:
    """A CLIP of transformers: config.json, model.safetensors and a tokenizer; any size."""
    tower = make_clip_images(folder)
    run = Frozen(tower.apply, dict(tower.tensors()))

    def images(x: Images) -> np.ndarray:
        return run(normalized(prepare(x, tower.image_size), CLIP_MEAN, CLIP_STD))

    @cache
    def text() -> tuple[Any, Frozen]:
        encoder = make_clip("clip", text_config(folder)["max_position_embeddings"], path=folder)
        apply = Frozen(
            lambda params, ids, mask: encoder.apply(params, ids, mask).pooled,
            dict(encoder.tensors()),
        )
        return encoder, apply

    def texts(x: list[str]) -> np.ndarray:
        encoder, apply = text()
        tokens = encoder.tokenize(x)
        return apply(tokens["ids"], tokens["mask"])

    return Towers(images, texts, learned_scale(folder))


def learned_scale(folder: Path) -> float:
    """The inverse temperature of a CLIP of transformers; 100 where its file has none."""
    scales = iter_safetensors(str(weights_of(folder)), keep=lambda name: name == "logit_scale")
    return next((float(np.exp(x)) for _, x in scales), 100.0)


@cache
def open_openclip(folder: Path, name: str, act: str, prepare: Callable | None) -> Towers:
    """A CLIP in OpenCLIP's form: the file ``name`` and a tokenizer beside it.

    ``prepare`` None: images at their own size and without position embeddings (RN50).
    """
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} has no {name}; put it there, with the tokenizer beside it.")
    tensors = read_tensors(file)
    network, found, side = image_tower(tensors, act)
    own_size = prepare is None
    run = Frozen(
        (lambda params, x: network(params, x, False)) if own_size else network,
        to_params(network, found, file),
    )

    def images(x: Images) -> np.ndarray:
        if prepare is None:
            return by_shape(x, lambda y: run(normalized(y, CLIP_MEAN, CLIP_STD)))
        return run(normalized(prepare(x, side), CLIP_MEAN, CLIP_STD))

    words, found = text_tower(tensors, act)
    pooled = Frozen(lambda params, ids: words(params, ids)[1], to_params(words, found, file))
    length = found["text_model.embeddings.position_embedding.weight"].shape[0]

    @cache
    def tokenizer() -> Any:
        from transformers import CLIPTokenizer  # takes seconds

        return load_tokenizer(CLIPTokenizer, folder, TOKENIZER_FILES)

    def texts(x: list[str]) -> np.ndarray:
        ids = tokenizer()(x, padding="max_length", truncation=True, max_length=length)["input_ids"]
        return pooled(np.array(ids, np.int32))

    return Towers(images, texts, float(np.exp(tensors["logit_scale"])))


class ClipScore:
    """The cosine of image and prompt, about 0.3 for photographs and their captions.

    Papers print it as it is or times 100; some cut it at 0 and multiply it by 2.5.
    """

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._clip = open_clip(clip_folder(weights, CLIP_SCORE))

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return self._clip.cosines(batch)


def preferred(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], scale: float = 100.0
) -> Float[np.ndarray, " n"]:
    """SUR-adapter's CLIP score: the probability of image b of a pair, by softmax over the scaled
    cosines of both images with their prompt."""
    return expit(scale * (np.asarray(b) - np.asarray(a)))


class CmmdEmbedding:
    """Unit embeddings of the images' central squares, for :func:`distances.cmmd`."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._clip = open_clip(clip_folder(weights, CMMD), centered)

    def __call__(self, batch: Batch) -> Float[np.ndarray, "n d"]:
        return self._clip.images(batch.images)


class Aesthetic:
    """The LAION aesthetic predictor, sac+logos+ava1-l14-linearMSE."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._clip = open_clip(clip_folder(weights, AESTHETIC_CLIP))
        self._head = Frozen(*aesthetic_head(weights))

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return self._head(self._clip.images(batch.images))


def aesthetic_head(weights: str) -> tuple[Network, dict[str, Any]]:
    """The head of the LAION predictor in the folder ``weights``, and its parameters."""
    names = (AESTHETIC_HEAD, "laion_aesthetic.safetensors")
    file = find_weights(weights, names, "the weights of the improved-aesthetic-predictor")
    tensors = read_tensors(file)
    width = tensors["layers.0.weight"].shape[1] if "layers.0.weight" in tensors else 768
    head = Network(lambda rngs: ScoreHead(width, rngs=rngs))
    return head, to_params(head, tensors, file)


class PickScore:
    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        self._clip = open_clip(clip_folder(weights, PICKSCORE, "yuvalkirstain"))

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return self._clip.scale * self._clip.cosines(batch)


class Hps:
    """Human Preference Score v2.1; papers print it times 100."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        source = f"{HPS_FILE} of xswu/HPSv2 and the tokenizer of any CLIP"
        folder = find_weights(weights, (HPS,), source)
        self._clip = open_openclip(folder, HPS_FILE, "gelu", padded)

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return self._clip.cosines(batch)


class ClipIqa:
    """The published form, with one pair of antonyms; IQA-PyTorch averages five other pairs."""

    def __init__(self, weights: str = DEFAULT_WEIGHTS_DIR):
        source = f"{OPENCLIP_FILE} and the tokenizer of timm/{CLIP_IQA}"
        folder = find_weights(weights, (CLIP_IQA,), source)
        self._clip = open_openclip(folder, OPENCLIP_FILE, "quick_gelu", None)
        good, bad = self._clip.texts(ANTONYMS)
        self._axis = self._clip.scale * (good - bad)

    def __call__(self, batch: Batch) -> Float[np.ndarray, " n"]:
        return expit(self._clip.images(batch.images) @ self._axis)


def clip_folder(weights: str, name: str, owner: str = "openai") -> Path:
    """The folder of a published CLIP in ``weights``."""
    source = f"the folder {owner}/{name} (config.json, model.safetensors and the tokenizer)"
    return find_weights(weights, (name,), source)
