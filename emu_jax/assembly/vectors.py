"""Computing and opening the cache of a model's vectors of prompts (:mod:`emu_jax.text.vectors`).

Several processes compute each batch together, every device its rows. The first process reads the
texts and writes the cache; the others follow the batches that it sends them.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from emu_jax.checkpoint.safetensors_io import place
from emu_jax.data.cache import digest
from emu_jax.data.precompute import cache_text, open_texts, text_fingerprint
from emu_jax.data.vectors import ARRAY, PromptVectors
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.nn.stack import layer_path
from emu_jax.parallel.distributed import on_every_process
from emu_jax.parallel.sharding import process_rows, put_batch, replicated, shard_params
from emu_jax.text.encoder import Tokens
from emu_jax.text.vectors import VectorModel

BATCH_SIZE = 32


def open_vectors(
    model: VectorModel, texts: Sequence[str], cache_dir: str | epath.PathLike
) -> PromptVectors:
    """The vectors of ``texts``, in the order of ``Captions(selections).texts``.

    Raises:
      UserError: they are not computed yet, or were computed with another model.
    """
    made_from = _fingerprint(model)
    return PromptVectors(open_texts(_folder(cache_dir, made_from), texts, made_from), texts)


def compute_vectors(
    model: VectorModel,
    texts: Sequence[str],
    cache_dir: str | epath.PathLike,
    mesh: Mesh,
    batch_size: int = BATCH_SIZE,
) -> PromptVectors | None:
    """:func:`open_vectors`, computed where they are not there yet; an interrupted computation
    continues. All processes must call it, and all but the first get None.
    """
    leads = jax.process_index() == 0
    made_from = _fingerprint(model) if leads else {}
    folder = _folder(cache_dir, made_from)
    if not on_every_process(leads and _complete(folder, texts, made_from))[0]:
        params, rows = place_model(model, mesh), process_rows(batch_size, mesh)
        apply = jax.jit(model.vectors, out_shardings=replicated(mesh))

        def compute(tokens: Tokens) -> np.ndarray:
            own = put_batch({name: x[rows] for name, x in tokens.items()}, mesh)
            return np.asarray(apply(params, **own))

        def encode(batch: list[str]) -> dict[str, np.ndarray]:
            tokens = model.tokenize(batch)
            _exchange(tokens, batch_size)
            return {ARRAY: compute(tokens)}

        if leads:
            cache_text(folder, texts, encode, made_from, batch_size)
            _exchange(None, batch_size)
        else:
            while tokens := _exchange(None, batch_size):
                compute(tokens)
    return open_vectors(model, texts, cache_dir) if leads else None


def _exchange(tokens: Tokens | None, batch_size: int) -> Tokens | None:
    """The first process's ``tokens`` on every process; None: there are no more."""
    length = on_every_process(tokens["ids"].shape[1] if tokens else 0)[0]
    if jax.process_count() == 1 or not length:
        return tokens
    packed = np.zeros((3, batch_size, length), np.int32)
    if tokens:
        packed[:] = tokens["ids"], tokens["mask"], tokens["counted"]
    ids, mask, counted = multihost_utils.broadcast_one_to_all(packed)
    return {"ids": ids, "mask": mask > 0, "counted": counted > 0}


def place_model(model: VectorModel, mesh: Mesh) -> Params:
    """The model's parameters, streamed into their shards; the blocks are stacked on the devices."""
    placed = place(model.tensors(), shard_params(model.shapes(), mesh), model.dtype)
    stacks = model.stacks()
    for path, sharding in shard_params(stacks, mesh).items():
        blocks = [placed.pop(layer_path(path, i)) for i in range(stacks[path].shape[0])]
        placed[path] = jax.jit(lambda *x: jnp.stack(x), out_shardings=sharding)(*blocks)
        placed[path].block_until_ready()  # before the next blocks need memory
    return placed


def _fingerprint(model: VectorModel) -> dict[str, str]:
    return text_fingerprint(model.fingerprint, model.dtype) | model.settings


def _complete(folder: epath.Path, texts: Sequence[str], made_from: Mapping[str, str]) -> bool:
    """Whether the vectors of all texts are there."""
    try:
        open_texts(folder, texts, made_from)
    except UserError:
        return False
    return True


def _folder(cache_dir: str | epath.PathLike, made_from: Mapping[str, str]) -> epath.Path:
    return epath.Path(cache_dir).expanduser() / f"vectors_{digest(made_from)[:16]}"
