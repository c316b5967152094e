"""Published networks that metrics read images with: where their weights are, and how they run.

Weights are files that a user has downloaded into one folder, under their published names
(docs/metrics.md lists them). They are data: safetensors, or pickles of which only tensors are read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8

from emu_jax.checkpoint.safetensors_io import iter_safetensors
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.pickles import read_pickle
from emu_jax.nn.torch_layout import from_layout, torch_paths

DEFAULT_WEIGHTS_DIR = os.environ.get("EMU_JAX_WEIGHTS") or "~/emu_jax_weights"
_ROWS = 32  # of a call on the devices
_REMEMBERED = 20_000  # images

Images = Sequence[UInt8[np.ndarray, "_ _ 3"]]


def find_weights(folder: str | Path, names: Sequence[str], source: str) -> Path:
    """The first of the files or folders ``names`` in ``folder``; ``source`` says what it is.

    Raises:
      UserError: there is none.
    """
    place = Path(folder).expanduser()
    for name in names:
        if (place / name).exists():
            return place / name
    raise UserError(
        f"{place} has no {' or '.join(names)}: download {source} into it, or name another folder "
        "by --weights or EMU_JAX_WEIGHTS."
    )


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The fp32 tensors of a .safetensors file or of a pickle of torch, without step counters."""
    if file.suffix == ".safetensors":
        found = dict(iter_safetensors(str(file)))
    else:
        found = {key: x.float().numpy() for key, x in read_pickle(file).items()}
    return {
        key: np.asarray(x, np.float32)
        for key, x in found.items()
        if not key.endswith("num_batches_tracked")
    }


def to_params(network: Network, tensors: Mapping[str, np.ndarray], source: Any) -> dict[str, Any]:
    """A network's parameters from tensors in torch's layout; ``source`` for messages."""
    try:
        keys = {path: key for key, path in torch_paths(tensors, network.shapes()).items()}
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return {path: from_layout(path, np.asarray(tensors[key])) for path, key in keys.items()}


class Frozen:
    """``function(params, *arrays)`` on all local devices, which divide the rows between them."""

    def __init__(self, function: Callable[..., Any], params: Mapping[str, Any]):
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("rows",))
        self._rows = NamedSharding(mesh, P("rows"))
        self._least = len(devices)
        self._params = jax.device_put(dict(params), NamedSharding(mesh, P()))
        self._run = jax.jit(function)

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Results for all rows. Calls are padded to few sizes, so that few programs compile."""
        n, results = len(arrays[0]), []
        most = max(_ROWS, self._least)
        size = min(most, 2 ** int(np.ceil(np.log2(n))))
        size = -(-size // self._least) * self._least
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)
            chunk = jax.device_put([x[rows] for x in arrays], self._rows)
            results.append(self._run(self._params, *chunk))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *results)


class Remembered:
    """``compute(images)`` gives one row per image; it is called once for every image.

    Several metrics read the features of one network. Images are known by their identity.
    """

    def __init__(self, compute: Callable[[Images], np.ndarray]):
        self._compute = compute
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, images: Images) -> Float[np.ndarray, "n f"]:
        if not isinstance(images, list):  # rows of an array have no identity
            return self._compute(images)
        new = [x for x in images if id(x) not in self._known]
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = images
        if new:
            # An image is kept with its row, so that no other one gets its identity.
            for image, row in zip(new, self._compute(new), strict=True):
                self._known[id(image)] = image, row
        return np.stack([self._known[id(x)][1] for x in images])


def by_shape(images: Images, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``compute`` of each array of images of one shape; rows in the order of the images."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    order = [i for rows in groups.values() for i in rows]
    found = [compute(np.stack([images[i] for i in rows])) for rows in groups.values()]
    return np.concatenate(found)[np.argsort(order)]
