"""Models by name, whole: where they lie, and adapters merged into the base they were trained on."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emu_jax.checkpoint.adapters import read_adapter
from emu_jax.checkpoint.export import Model, load_model
from emu_jax.checkpoint.foreign import blaming
from emu_jax.errors import UserError
from emu_jax.nn.lora import Lora, merge
from emu_jax.nn.stack import unstacked
from emu_jax.tasks.adapting import BASE

WEIGHTS = Path(__file__).parents[1] / "weights"


def locate(path: str) -> str:
    """``builtin:NAME`` as the folder of the shipped weights; any other path as it is."""
    if not path.startswith("builtin:"):
        return path
    shipped = {f"builtin:{folder.name}": folder for folder in WEIGHTS.glob("*/")}
    if path not in shipped:
        names = ", ".join(sorted(shipped))
        raise UserError(f"No weights called {path} come with emu_jax; there are {names or 'none'}.")
    return str(shipped[path])


def make_lora(config: ConfigDict) -> Lora | None:
    """What ``config.lora`` says; None: all of the model trains (older configs cannot say)."""
    section = config.get("lora")
    if not section or not section.rank:
        return None
    return Lora(section.rank, section.alpha, section.pattern)


@blaming("path")
def open_model(path: str, dtype: Any = np.float32, adapters: tuple[str, ...] = ()) -> Model:
    """:func:`load_model` of what ``path`` names; a run that trained an adapter is laid
    over its base, in fp32, and is then a model like any other.

    ``adapters``: the adapters whose base this is, to stop at one that is its own base.

    Raises:
      UserError: the base is not there any more, or is not the one the adapter was trained on.
    """
    model = load_model(locate(path), dtype=dtype)
    config = ConfigDict(model.config)
    lora = make_lora(config)
    if lora is None:
        return model
    if path in adapters:
        raise UserError(f"{path} is an adapter of itself: its config was changed, export it again.")
    try:
        base = open_model(config.init_from, adapters=(*adapters, path))
    except UserError as error:
        raise UserError(f"{path} is an adapter of {config.init_from}. {error}") from error
    if base.fingerprint != model.meta["frozen"][BASE]["fingerprint"]:
        raise UserError(
            f"{path} is an adapter of {config.init_from}, which has changed since: put back the "
            "model that was there when it was trained."
        )
    whole = lora.merged(unstacked(base.params), unstacked(model.params))
    config.lora.rank = 0
    return replace(
        model,
        params={name: np.asarray(value) for name, value in whole.items()},
        config=config.to_dict(),
        fingerprint=_together(base.fingerprint, model.fingerprint),
    )


def with_adapter(model: Model, path: str, scale: float = 1.0) -> Model:
    """``model`` with the adapter of a file in the public layout merged, ``scale`` times."""
    params = unstacked(model.params)
    adapter, fingerprint = read_adapter(path, params)
    whole = merge(params, adapter, scale)
    return replace(
        model,
        params={name: np.asarray(value) for name, value in whole.items()},
        fingerprint=_together(model.fingerprint, f"{fingerprint} {scale}"),
    )


def _together(*fingerprints: str) -> str:
    """Of what was made from several: not of the sums, which round differently by device."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
