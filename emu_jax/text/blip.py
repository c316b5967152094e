"""Captions of images by BLIP, from a folder as Hugging Face's ``BlipForConditionalGeneration`` is
published: config.json, model.safetensors and a BERT's tokenizer.

A caption continues a prompt ("a picture of"), which is not part of it. Settings that the folder has
for ``generate`` and that are not supported (sampling, say) are refused by name.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emu_jax.checkpoint.foreign import described_by, entry, like, read_json
from emu_jax.checkpoint.huggingface import find_folder, read_config, stream_params, weights_of
from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.errors import UserError
from emu_jax.nn.captioner import Captioner, Memory
from emu_jax.nn.functional import Network, Params
from emu_jax.text.pretrained import load_tokenizer
from emu_jax.text.search import Settings, search

PROMPT = "a picture of "
_MOST_LAYERS = 1000
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",))
# The defaults of the published classes, for keys that a config leaves out.
_VISION = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=384,
    patch_size=16,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
)
_TEXT = dict(
    vocab_size=30524,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=512,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    bos_token_id=30522,
    sep_token_id=102,
    tie_word_embeddings=True,
)
# Settings of ``generate``, with the value that changes nothing. Old configs have them in the text
# section. Those of :class:`Settings` are arguments here.
_NEUTRAL: Mapping[str, Any] = dict(
    do_sample=False,
    early_stopping=False,
    num_beam_groups=1,
    num_return_sequences=1,
    diversity_penalty=0.0,
    no_repeat_ngram_size=0,
    encoder_no_repeat_ngram_size=0,
    encoder_repetition_penalty=1.0,
    bad_words_ids=None,
    force_words_ids=None,
    constraints=None,
    forced_bos_token_id=None,
    forced_eos_token_id=None,
    exponential_decay_length_penalty=None,
    suppress_tokens=None,
    begin_suppress_tokens=None,
    sequence_bias=None,
    guidance_scale=None,
    penalty_alpha=None,
    stop_strings=None,
    renormalize_logits=False,
    watermarking_config=None,
    min_new_tokens=None,
)
# Keys of the published class -> of our network.
_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^(visual_encoder\.blocks\.\d+\.)self_attn\.projection\.", r"\1attn.proj."),
    (r"^(visual_encoder\.blocks\.\d+\.)self_attn\.", r"\1attn."),
    (r"^(visual_encoder\.blocks\.\d+\.)layer_norm(\d)\.", r"\1norm\2."),
    (r"^text_decoder\.cls\.predictions\.decoder\.bias$", "text_decoder.cls.predictions.bias"),
)
# The output layer is the table of words.
_UNUSED = re.compile(r".*position_ids|text_decoder\.cls\.predictions\.decoder\.weight")


@dataclass(frozen=True)
class Blip:
    """``config``: the sections ``vision`` and ``text``, complete."""

    folder: Path
    config: Mapping[str, Mapping[str, Any]]
    prompt: str = PROMPT
    settings: Settings = field(default_factory=Settings)

    @property
    def image_size(self) -> int:
        return self.config["vision"]["image_size"]

    @cached_property
    def network(self) -> Network:
        with described_by(self.folder):
            return network(self.config)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, fp32 array) of every parameter, one in memory at a time."""
        shapes = self.network.shapes()
        return stream_params(weights_of(self.folder), shapes, jnp.dtype("float32"), _published_key)

    @property
    def recipe(self) -> dict[str, str]:
        """Everything that a caption depends on except its image."""
        files = [self.folder / name for names in TOKENIZER_FILES for name in names]
        vocabulary = b"".join(file.read_bytes() for file in files if file.is_file())
        return {
            "weights": fingerprint(str(weights_of(self.folder))),
            "config": json.dumps(self.config, sort_keys=True),
            "tokenizer": hashlib.sha256(vocabulary).hexdigest(),
            "prompt": self.prompt,
        } | {name: f"{value:g}" for name, value in asdict(self.settings).items()}

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The ids of the prompt, without the token that ends a text."""
        with described_by(self.folder):
            ids = self._tokenizer(self.prompt)["input_ids"]
        text = self.config["text"]
        ids = (text["bos_token_id"], *ids[1:-1])
        if max(*ids, text["sep_token_id"]) >= text["vocab_size"]:
            raise UserError(
                f"{self.folder} has {text['vocab_size']} ids, but its tokenizer or config gives "
                f"{max(*ids, text['sep_token_id'])}; use tokenizer and weights of one model."
            )
        return ids

    def check(self) -> None:
        """Raises UserError where the settings do not fit the model."""
        self.settings.check(len(self.prefix), self.config["text"]["max_position_embeddings"])

    def generate(self, params: Params, x: Float[Array, "b s s 3"]) -> Int[Array, "b max_length"]:
        """The ids of prompt and caption, then of the end. Images are normalized as CLIP's. Pure."""
        net, settings = self.network, self.settings
        memory = net(params, x, settings.num_beams, settings.max_length, method="start")
        return search(
            lambda ids, position, memory: net(params, ids, position, memory, method="step"),
            Memory.reordered,
            memory,
            len(x),
            self.prefix,
            self.config["text"]["sep_token_id"],
            settings,
        )

    def decode(self, ids: Int[np.ndarray, "b max_length"]) -> list[str]:
        """The captions without the prompt."""
        rows = [row[len(self.prefix) :].tolist() for row in np.asarray(ids)]
        with described_by(self.folder):
            texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return [" ".join(text.split()) for text in texts]

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer  # takes seconds

        return load_tokenizer(BertTokenizer, self.folder, TOKENIZER_FILES)


def make_blip(path: str | Path, prompt: str = PROMPT, settings: Settings | None = None) -> Blip:
    """The captioner in a folder, or of a hub's name.

    Raises:
      UserError: no such model, not of this architecture, or settings that are not supported.
    """
    folder = find_folder(Path(path).expanduser() if Path(path).expanduser().is_dir() else path)
    found = Blip(folder.absolute(), blip_config(folder), prompt, settings or Settings())
    found.check()
    return found


def blip_config(folder: Path) -> dict[str, dict[str, Any]]:
    """The complete sections of a folder's config."""
    file = folder / "config.json"
    config = read_config(folder, ("blip",))
    found = {}
    for name, defaults in (("vision", _VISION), ("text", _TEXT)):
        section = entry({f"{name}_config": {}} | config, f"{name}_config", dict, file)
        _refuse_settings(section, file)
        section = like(section, defaults, file)
        if section["hidden_act"] != "gelu":
            raise UserError(
                f"{file}: hidden_act is {section['hidden_act']!r} in {name}_config; only gelu is "
                "supported."
            )
        if section["hidden_size"] % section["num_attention_heads"]:
            raise UserError(
                f"{file}: the hidden_size {section['hidden_size']} of {name}_config is not a "
                f"multiple of its num_attention_heads, {section['num_attention_heads']}."
            )
        found[name] = {key: section[key] for key in defaults}
        if section["num_hidden_layers"] > _MOST_LAYERS:
            raise UserError(
                f"{file} has {section['num_hidden_layers']} layers, more than any model has."
            )
    tied = entry({"tie_word_embeddings": True} | config, "tie_word_embeddings", bool, file)
    if not (found["text"]["tie_word_embeddings"] and tied):
        raise UserError(f"{file}: tie_word_embeddings is false; only tied ones are supported.")
    if (folder / "generation_config.json").is_file():
        file = folder / "generation_config.json"
        _refuse_settings(read_json(file), file)
    _check_preprocessor(folder, found["vision"]["image_size"])
    return found


def _refuse_settings(config: Mapping[str, Any], file: Path) -> None:
    for name, neutral in _NEUTRAL.items():
        value = config.get(name)
        if value is not None and value != neutral:
            raise UserError(
                f"{file}: the setting {name} is {value!r}; it is not supported, remove it."
            )


def _check_preprocessor(folder: Path, side: int) -> None:
    """Raises UserError unless images are prepared as we do: resized to a square by the bicubic
    filter, then normalized as CLIP's."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    config = read_json(file)
    wanted = dict(
        size=[{"height": side, "width": side}, side],
        resample=[3],
        do_resize=[True],
        do_rescale=[True],
        do_normalize=[True],
        do_center_crop=[False],
        image_mean=[[0.48145466, 0.4578275, 0.40821073]],
        image_std=[[0.26862954, 0.26130258, 0.27577711]],
    )
    for name, values in wanted.items():
        if config.get(name) is not None and config[name] not in values:
            raise UserError(f"{file}: {name} is {config[name]!r}; only {values[0]!r} is supported.")


def network(config: Mapping[str, Mapping[str, Any]]) -> Network:
    """The network of a complete config."""
    vision, text = config["vision"], config["text"]
    return Network(
        lambda rngs: Captioner(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vision_width=vision["hidden_size"],
            vision_layers=vision["num_hidden_layers"],
            vision_heads=vision["num_attention_heads"],
            vision_feed_forward=vision["intermediate_size"],
            vision_eps=vision["layer_norm_eps"],
            vocabulary=text["vocab_size"],
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            feed_forward=text["intermediate_size"],
            positions=text["max_position_embeddings"],
            eps=text["layer_norm_eps"],
            rngs=rngs,
        )
    )


def _published_key(key: str) -> str | None:
    """The parameter name of a key in a folder, None for keys that our network does not have."""
    if _UNUSED.fullmatch(key):
        return None
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key
