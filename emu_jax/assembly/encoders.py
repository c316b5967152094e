"""The text encoders that a config names: their networks to freeze, and what they say of no text."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import replicated
from emu_jax.tasks.base import Frozen
from emu_jax.text.encoder import TextEncoder, make_encoder


def make_encoders(section: ConfigDict) -> dict[str, TextEncoder]:
    """The encoders of ``config.text`` by name; an entry's name is its kind unless it gives one."""
    return {
        name: make_encoder(**{"kind": name, **options.to_dict()}, name=name)
        for name, options in section.items()
    }


def frozen_encoders(section: ConfigDict, encoders: Mapping[str, TextEncoder]) -> dict[str, Frozen]:
    return {
        name: Frozen(
            section[name].get("path") or f"builtin:{name}",
            encoder.fingerprint,
            encoder.shapes(),
            encoder.tensors,
            encoder.dtype,
        )
        for name, encoder in encoders.items()
    }


def blank_condition(encoder: TextEncoder) -> Encoded:
    """One row of zeros, all of them visible, as the encoder's output is laid out."""
    ids = jax.ShapeDtypeStruct((1, encoder.length), np.int32)
    mask = jax.ShapeDtypeStruct((1, encoder.length), bool)
    told = jax.eval_shape(encoder.apply, encoder.shapes(), ids, mask)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), told)
    return zeros._replace(mask=np.ones_like(zeros.mask))


def null_condition(encoder: TextEncoder, params: Params, mesh: Mesh) -> Encoded:
    """One row: what the encoder says of no text, by its policy."""
    if encoder.null == "zeros":
        return blank_condition(encoder)
    tokens = encoder.tokenize([""])
    apply = jax.jit(encoder.apply, out_shardings=replicated(mesh))
    return jax.device_get(apply(params, tokens["ids"], tokens["mask"]))
