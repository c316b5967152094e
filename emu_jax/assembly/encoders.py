"""From a config to its text encoders and their frozen networks."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from emu_jax.tasks.base import Frozen
from emu_jax.text.encoder import TextEncoder, make_encoder


def make_encoders(section: ConfigDict) -> dict[str, TextEncoder]:
    """The encoders of ``config.text`` by name; an entry's name is its kind unless it gives one."""
    return {
        name: make_encoder(**{"kind": name, **options.to_dict()}, name=name)
        for name, options in section.items()
    }


def frozen_encoders(section: ConfigDict, encoders: Mapping[str, TextEncoder]) -> dict[str, Frozen]:
    """The encoders' networks; their weights are not read yet."""
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
