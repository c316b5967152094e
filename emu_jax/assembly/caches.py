"""The caches that a config asks for: opened where they are complete, else computed once.

They are computed with the task's own encoders. The name of a cache's folder is the digest of
everything that the cache depends on, so two runs with the same encoder, crop, flip and images share
one cache, and any difference makes another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.vectors import compute_vectors, open_vectors
from emu_jax.data.cache import Cache, digest
from emu_jax.data.pipeline import (
    Caches,
    Captions,
    Selection,
    StreamSpec,
    images_fingerprint,
)
from emu_jax.data.precompute import (
    cache_moments,
    cache_text,
    text_fingerprint,
)
from emu_jax.data.vectors import ControlVectors
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Frozen, Latents, Task
from emu_jax.text.encoder import TextEncoder


def open_caches(
    config: ConfigDict,
    task: Task,
    stream: str,
    frozen: Mapping[str, Params],
    sources: Sequence[Selection],
    spec: StreamSpec,
    mesh: Mesh,
) -> Caches:
    """The caches of one of the task's streams: what it can cache of images where
    ``data.cache_latents``, every text encoder's outputs where ``data.cache_text``, and a
    model's vectors of captions where the rows hold them.
    """
    data, rows = config.data, task.streams[stream]
    cached_text = data.cache_text and rows.encoders
    if not data.cache_latents and not cached_text and not rows.vectors:
        return Caches()
    if not data.cache_dir:
        raise UserError("data.cache_latents, data.cache_text and vectors need data.cache_dir.")
    root = epath.Path(data.cache_dir).expanduser()
    moments = vectors = None
    if data.cache_latents:
        require_cacheable(config, task)
    if data.cache_latents and rows.latents:
        moments = _latents(root, rows.latents, frozen, sources, spec)
    if rows.vectors:
        model, control, seed = rows.vectors
        texts = Captions(sources).texts
        asked = model, texts, root
        vectors = (compute_vectors(*asked, mesh) or open_vectors(*asked)).cache
        if control != "none":
            vectors = ControlVectors(vectors, texts, control, seed)

    def cached(sources: Sequence[Selection]) -> dict[str, Cache]:
        texts = Captions(sources).texts
        return {
            name: _text(root, name, encoder, task.frozen[name], frozen[name], texts)
            for name, encoder in rows.encoders.items()
        }

    if not cached_text:
        return Caches(moments, vectors=vectors)
    further = {
        column: cached([replace(source, captions=column) for source in sources])
        for column in rows.captions
    }
    return Caches(moments, cached(sources), further, vectors)


def require_cacheable(config: ConfigDict, task: Task) -> None:
    """Raises a UserError where no stream of the task has anything to cache of its images."""
    if not any(spec.latents for spec in task.streams.values()):
        raise UserError(
            f"data.cache_latents is True, but the task {config.task} has no latents to cache: set "
            "it to False."
        )


def _latents(
    root: epath.Path,
    latents: Latents,
    frozen: Mapping[str, Params],
    sources: Sequence[Selection],
    spec: StreamSpec,
) -> Cache:
    made_from = {**latents.made_from, **images_fingerprint(spec, sources)}
    folder = root / f"latents_{digest(made_from)[:16]}"
    if folder.exists():
        return Cache.open(folder, made_from)
    networks = {name: frozen[name] for name in latents.networks}
    compiled = jax.jit(latents.encode)

    def encode(image: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(compiled(networks, image))

    return cache_moments(folder, spec, sources, encode, made_from)


def _text(
    root: epath.Path,
    name: str,
    encoder: TextEncoder,
    network: Frozen,
    params: Params,
    texts: Sequence[str],
) -> Cache:
    made_from = text_fingerprint(texts, network.fingerprint, encoder.dtype)
    made_from["tokenizer"] = encoder.tokenizer_fingerprint
    # Beside weights and dtype: the length, the layer, whether there is a pooled vector.
    made_from |= {key: str(value) for key, value in encoder.settings().items()}
    folder = root / f"text_{name}_{digest(made_from)[:16]}"
    if folder.exists():
        return Cache.open(folder, made_from)
    apply = jax.jit(encoder.apply)

    def encode(batch: list[str]) -> dict[str, np.ndarray]:
        tokens = encoder.tokenize(batch)
        encoded = apply(params, tokens["ids"], tokens["mask"])._asdict()
        return {key: np.asarray(value) for key, value in encoded.items() if value is not None}

    return cache_text(folder, texts, encode, made_from)
