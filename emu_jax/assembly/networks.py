"""Small helpers for the modules here: networks from arguments, frozen networks from arrays."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from emu_jax.checkpoint.safetensors_io import fingerprint_params
from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments
from emu_jax.tasks.base import Frozen


def module(kind: Callable, arguments: Mapping[str, Any], rngs: nnx.Rngs) -> Any:
    check_arguments(kind, arguments, kind.__name__)
    try:
        return kind(**arguments, rngs=rngs)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}.") from error


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype of activations. Stored configs are not checked by a schema, so this one is here."""
    name = config.compute_dtype
    if name not in ("float32", "bfloat16"):
        raise UserError(f"compute_dtype is {name!r}; use float32 or bfloat16.")
    return jnp.dtype(name)


def frozen_arrays(source: str, params: Mapping[str, Any]) -> Frozen:
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    return Frozen(source, fingerprint_params(params), shapes, lambda: iter(params.items()))


def untrained(key: str, path: str) -> Callable[[], Iterator[tuple[str, np.ndarray]]]:
    def refuse() -> Iterator[tuple[str, np.ndarray]]:
        raise UserError(
            f"{key} {path} is a config file, which is enough to plan a step, not to run one: "
            "name the run or the exported model of what was trained by it."
        )

    return refuse
