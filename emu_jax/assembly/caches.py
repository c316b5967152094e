"""The caches that a config asks for: opened where they are complete, else computed once.

They are computed with the task's own encoders. The name of a cache's folder is the digest of
everything that its rows depend on beside the image or text of each, so runs with the same encoder
and crop share one folder, and each finds the rows there that others have computed.

Of several processes each computes its share, on its own devices, with networks of its own: the
run's are divided over all processes, which would have to compute every batch together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emu_jax.assembly.tasks import open_task
from emu_jax.assembly.vectors import compute_vectors, open_vectors
from emu_jax.data.cache import ALONE, Cache, Together, digest
from emu_jax.data.pipeline import (
    Caches,
    Captions,
    Selection,
    StreamSpec,
)
from emu_jax.data.precompute import (
    EncodeImages,
    cache_moments,
    cache_text,
    pixels_fingerprint,
    text_fingerprint,
)
from emu_jax.data.vectors import ControlVectors
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.parallel.mesh import make_mesh
from emu_jax.tasks.base import Frozen, Task, encoders_of
from emu_jax.text.encoder import Encoded, TextEncoder


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
    networks = _Networks(config, frozen)
    moments = vectors = None
    if data.cache_latents:
        require_cacheable(config, task)
    if data.cache_latents and rows.latents:
        moments = _latents(root, stream, task, networks, sources, spec)
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
            name: _text(
                root, name, encoder, task.frozen[name], partial(networks.encoder, task, name), texts
            )
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


class _Networks:
    """A run's frozen networks where this process can use them alone, loaded on first use."""

    def __init__(self, config: ConfigDict, frozen: Mapping[str, Params]):
        self._config, self._frozen = config, frozen

    @functools.cached_property
    def _own(self) -> tuple[Task, Mapping[str, Params]]:
        mesh = make_mesh(data=1, fsdp=-1, devices=jax.local_devices())
        return open_task(self._config, mesh, self._config.attention)

    def task(self, task: Task) -> Task:
        return task if jax.process_count() == 1 else self._own[0]

    @property
    def params(self) -> Mapping[str, Params]:
        return self._frozen if jax.process_count() == 1 else self._own[1]

    def encoder(self, task: Task, name: str) -> tuple[TextEncoder, Params]:
        return encoders_of(self.task(task))[name], self.params[name]


def _together(name: str) -> Together:
    """The share of this process."""
    if jax.process_count() == 1:
        return ALONE
    wait = partial(multihost_utils.sync_global_devices, name)
    return Together(jax.process_index(), jax.process_count(), wait)


def _latents(
    root: epath.Path,
    stream: str,
    task: Task,
    networks: _Networks,
    sources: Sequence[Selection],
    spec: StreamSpec,
) -> Cache:
    latents = task.streams[stream].latents
    assert latents is not None, "a stream with latents"
    made_from = {**latents.made_from, **pixels_fingerprint(spec)}

    @functools.cache
    def encoder() -> EncodeImages:
        own = networks.task(task).streams[stream].latents
        assert own is not None
        params = {name: networks.params[name] for name in own.networks}
        compiled = jax.jit(own.encode)
        return lambda image: jax.device_get(compiled(params, image))

    folder = root / f"latents_{digest(made_from)[:16]}"
    together = _together(folder.name)
    return cache_moments(folder, spec, sources, lambda x: encoder()(x), made_from, together)


def _text(
    root: epath.Path,
    name: str,
    encoder: TextEncoder,
    network: Frozen,
    open_encoder: Callable[[], tuple[TextEncoder, Params]],
    texts: Sequence[str],
) -> Cache:
    made_from = text_fingerprint(network.fingerprint, encoder.dtype)
    made_from["tokenizer"] = encoder.tokenizer_fingerprint
    # Beside weights and dtype: the length, the layer, whether there is a pooled vector.
    made_from |= {key: str(value) for key, value in encoder.settings().items()}

    @functools.cache
    def compiled() -> tuple[Callable[..., Encoded], Params]:
        own, params = open_encoder()
        return jax.jit(own.apply), params

    def encode(batch: list[str]) -> dict[str, np.ndarray]:
        apply, params = compiled()
        tokens = encoder.tokenize(batch)
        encoded = apply(params, tokens["ids"], tokens["mask"])._asdict()
        return {key: np.asarray(value) for key, value in encoded.items() if value is not None}

    folder = root / f"text_{name}_{digest(made_from)[:16]}"
    return cache_text(folder, texts, encode, made_from, together=_together(folder.name))
