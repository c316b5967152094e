"""Parameters of our networks from the state dicts of torch's modules."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emu_jax.nn.torch_layout import from_layout, torch_paths


def from_torch(state_dict: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters of ``shapes`` (path -> anything with a shape), in its order."""
    keys = {path: key for key, path in torch_paths(state_dict, shapes).items()}
    return {path: from_layout(path, np.asarray(state_dict[keys[path]])) for path in shapes}
