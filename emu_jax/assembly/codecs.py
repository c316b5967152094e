"""From a config to a codec and its frozen weights."""

import inspect

import numpy as np
from ml_collections import ConfigDict

from emu_jax.assembly.autoencoding import autoencoder_factor, autoencoder_network, quantized
from emu_jax.assembly.config import read
from emu_jax.assembly.models import locate
from emu_jax.assembly.networks import frozen_arrays, untrained
from emu_jax.assembly.registry import CODECS
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.foreign import described_by, require_fit
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.errors import UserError
from emu_jax.registry import loaded, look_up
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.codecs import AutoencoderCodec, Codec, IdentityCodec, TokenCodec, codec_params


def make_codec(section: ConfigDict, name: str = "codec") -> tuple[Codec, dict[str, Frozen]]:
    """The codec of a config's section called ``name``, and its frozen weights."""
    make = loaded(look_up(CODECS, section.kind, f"{name}.kind"))
    taken = inspect.signature(make).parameters  # A stored config may have other keys.
    return make(name, **{key: value for key, value in section.items() if key in taken})


def make_identity_codec(name: str) -> tuple[Codec, dict[str, Frozen]]:
    """Pixels as they are."""
    return IdentityCodec(), {}


def make_autoencoder_codec(name: str, *, path: str) -> tuple[Codec, dict[str, Frozen]]:
    """The latents or tokens of an autoencoder's run or exported model.

    ``name`` is also the name of the frozen network. If the path is a config file, the codec has the
    shapes of an autoencoder that is not trained yet: enough to plan a step.
    """
    planned = is_config_file(path)  # The user named it: no stored config names one.
    model = None if planned else load_model(locate(path), dtype=np.float32)
    made_by = ConfigDict(model.config) if model else read(path)
    if made_by.get("task") != "autoencoding":
        task = made_by.get("task")
        raise UserError(
            f"{name}.path {path} is not an autoencoder: its task is {task!r}. Name the run "
            "or the exported model of one."
        )
    with described_by(path):
        network, factor = autoencoder_network(made_by, lambda x: x), autoencoder_factor(made_by)
        codes = quantized(made_by)
        codec = (
            TokenCodec(network, codes, made_by.latent_channels, factor)
            if codes
            else AutoencoderCodec(network, made_by.latent_channels, factor)
        )
        weights = codec_params(model.params) if model else {}
    if model:
        require_fit(weights, codec.shapes(), path)
        return codec, {name: frozen_arrays(path, weights)}
    refuse = untrained(f"{name}.path", path)
    return codec, {name: Frozen(path, "none", codec.shapes(), refuse)}
