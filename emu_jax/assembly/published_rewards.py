"""Published models of people's preferences as rewards, each from the folder that its metric reads
(docs/metrics.md).

    image_reward      ImageReward.pt and BERT's tokenizer
    pickscore         PickScore_v1: config.json, model.safetensors and the tokenizer
    hps               HPS_v2.1_compressed.pt and CLIP's tokenizer
    laion_aesthetic   the head, and the folder clip-vit-large-patch14

ImageReward's scores are standardized by its authors, and ReFL's alpha is 2. The others have the
unit of their metric, and no alpha.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from emu_jax.assembly.networks import frozen_arrays
from emu_jax.checkpoint.foreign import blaming
from emu_jax.errors import UserError
from emu_jax.evaluation.clip_metrics import (
    AESTHETIC_CLIP,
    HPS_FILE,
    aesthetic_head,
    learned_scale,
)
from emu_jax.evaluation.frozen import read_tensors, to_params
from emu_jax.evaluation.quality_metrics import IMAGE_REWARD_LENGTH, read_image_reward
from emu_jax.nn.blip import DEVIATION as BLIP_DEVIATION
from emu_jax.nn.blip import MEAN as BLIP_MEAN
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Network, Params
from emu_jax.nn.openclip import image_tower, text_tower
from emu_jax.nn.resizing import cropped, padded
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.rewards import (
    ALPHA,
    DEVIATION,
    MEAN,
    AestheticReward,
    BlipReward,
    ClipReward,
    Reward,
)
from emu_jax.text.bert_tokens import make_bert_tokens
from emu_jax.text.clip import TOKENIZER_FILES, make_clip, make_clip_images, text_config
from emu_jax.text.encoder import TextEncoder
from emu_jax.text.pretrained import load_tokenizer

REFL_ALPHA = 2.0


class Opened(NamedTuple):
    """A reward, the encoder of its text, its weights with what standardizes it, the dimension of
    each output ("": all preferences), and alpha of each.
    """

    reward: Reward
    encoder: TextEncoder | None
    weights: Frozen
    outputs: tuple[str, ...]
    alpha: Float[np.ndarray, " outputs"]


def _opened(
    path: str,
    reward: Reward,
    encoder: TextEncoder | None,
    params: Mapping[str, Any],
    *,
    mean: float = 0.0,
    deviation: float = 1.0,
    alpha: float = np.nan,
) -> Opened:
    numbers = {MEAN: mean, DEVIATION: deviation, ALPHA: alpha}
    standard = {name: np.array([x], np.float32) for name, x in numbers.items()}
    weights = frozen_arrays(path, {**params, **standard})
    return Opened(reward, encoder, weights, ("",), standard[ALPHA])


@blaming("path")
def open_image_reward(path: str) -> Opened:
    folder = Path(path).expanduser()
    network, params, sizes = read_image_reward(folder)
    length = min(IMAGE_REWARD_LENGTH, sizes["positions"])
    encoder = make_bert_tokens("bert", length, path=folder, vocabulary=sizes["vocabulary"])
    return _opened(
        path,
        BlipReward(network, sizes["image_size"]),
        encoder,
        params,
        mean=BLIP_MEAN,
        deviation=BLIP_DEVIATION,
        alpha=REFL_ALPHA,
    )


@blaming("path")
def open_pickscore(path: str) -> Opened:
    folder = Path(path).expanduser()
    tower = make_clip_images(folder)
    encoder = make_clip("clip", text_config(folder)["max_position_embeddings"], path=folder)
    resize = partial(cropped, side=tower.image_size)
    reward = ClipReward(tower.network, resize, learned_scale(folder))
    return _opened(path, reward, encoder, dict(tower.tensors()))


@blaming("path")
def open_hps(path: str, act: str = "gelu") -> Opened:
    file = Path(path).expanduser() / HPS_FILE
    tensors = _tensors_of(file)
    network, found, side = image_tower(tensors, act)
    positions = text_tower(tensors, act)[1][_POSITIONS].shape[0]
    encoder = OpenClipText("hps", file.parent, positions, 1, 1, file=file, act=act)
    resize = partial(padded, side=side, value=-1.0)  # black
    reward = ClipReward(network, resize, 1.0)
    return _opened(path, reward, encoder, to_params(network, found, file))


@blaming("path")
def open_laion_aesthetic(path: str) -> Opened:
    tower = make_clip_images(Path(path).expanduser() / AESTHETIC_CLIP)
    head, params = aesthetic_head(path)
    reward = AestheticReward(tower.network, head, partial(cropped, side=tower.image_size))
    parts = {"clip": tower.tensors(), "head": params.items()}
    nested = {f"{part}/{name}": x for part, found in parts.items() for name, x in found}
    return _opened(path, reward, None, nested)


PUBLISHED: Mapping[str, Callable[[str], Opened]] = {
    "image_reward": open_image_reward,
    "pickscore": open_pickscore,
    "hps": open_hps,
    "laion_aesthetic": open_laion_aesthetic,
}
_POSITIONS = "text_model.embeddings.position_embedding.weight"


def _tensors_of(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}; put it there, with CLIP's tokenizer.")
    return read_tensors(file)


@dataclass(frozen=True)
class OpenClipText(TextEncoder):
    """The text tower in OpenCLIP's file ``file``; only its pooled vector is of use."""

    file: Path = field(kw_only=True)
    act: str = field(kw_only=True)

    @cached_property
    def _tower(self) -> tuple[Network, dict[str, np.ndarray]]:
        return text_tower(_tensors_of(self.file), self.act)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer  # takes seconds

        return load_tokenizer(CLIPTokenizer, self.folder, TOKENIZER_FILES)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        sides = dict(padding="max_length", truncation=True, max_length=self.length)
        ids = np.array(self._tokenizer(texts, **sides)["input_ids"], np.int32)
        ids = ids.reshape(-1, self.length)
        return ids, np.ones(ids.shape, bool)

    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        states, pooled = self._tower[0](params, ids)
        return Encoded(states, mask, pooled)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.dtype))
            for path, x in self._tower[0].shapes().items()
        }

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        return iter(to_params(*self._tower, self.file).items())

    @property
    def weights(self) -> Path:
        return self.file

    @property
    def tokenizer_files(self) -> Sequence[Path]:
        names = {name for names in TOKENIZER_FILES for name in names}
        return [self.folder / name for name in sorted(names) if (self.folder / name).is_file()]
