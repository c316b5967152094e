"""From a config to a codec and its frozen weights."""

import numpy as np
from ml_collections import ConfigDict

from emu_jax.assembly.autoencoding import autoencoder_factor, autoencoder_network, quantized
from emu_jax.assembly.config import read
from emu_jax.assembly.models import locate
from emu_jax.assembly.networks import frozen_arrays, untrained
from emu_jax.checkpoint.export import load_model
from emu_jax.checkpoint.paths import is_config_file
from emu_jax.errors import UserError
from emu_jax.tasks.base import Frozen
from emu_jax.tasks.codecs import AutoencoderCodec, Codec, IdentityCodec, TokenCodec, codec_params


def make_codec(section: ConfigDict, name: str = "codec") -> tuple[Codec, dict[str, Frozen]]:
    """The codec, and its weights to freeze, from an autoencoder's run or exported model.

    ``name`` is the section's, and the frozen network's. A path that is a config file says the
    shapes alone, of an autoencoder still to be trained: enough to plan a generator's step with.
    """
    if section.kind == "identity":
        return IdentityCodec(), {}
    if section.kind != "autoencoder":
        raise UserError(f"{name}.kind is autoencoder or identity, not {section.kind!r}.")
    model = (
        None if is_config_file(section.path) else load_model(locate(section.path), dtype=np.float32)
    )
    made_by = ConfigDict(model.config) if model else read(section.path)
    if made_by.get("task") != "autoencoding":
        task = made_by.get("task")
        raise UserError(f"{name}.path {section.path} is no autoencoder: its task is {task}.")
    network, factor = autoencoder_network(made_by, lambda x: x), autoencoder_factor(made_by)
    codes = quantized(made_by)
    codec = (
        TokenCodec(network, codes, made_by.latent_channels, factor)
        if codes
        else AutoencoderCodec(network, made_by.latent_channels, factor)
    )
    if model:
        return codec, {name: frozen_arrays(section.path, codec_params(model.params))}
    refuse = untrained(f"{name}.path", section.path)
    return codec, {name: Frozen(section.path, "none", codec.shapes(), refuse)}
