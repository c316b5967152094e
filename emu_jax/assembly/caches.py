"""The caches a config asks for: opened where they are complete, else computed once.

They are computed with the task's own encoders. A cache's folder carries the digest of what it was
made from, so that two runs which agree on encoder, crop, flip and pictures share one, and any
difference makes another.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from emu_jax.data.cache import Cache, digest
from emu_jax.data.pipeline import Caches, Captions, Selection, StreamSpec
from emu_jax.data.precompute import (
    cache_moments,
    cache_text,
    moments_fingerprint,
    text_fingerprint,
)
from emu_jax.errors import UserError
from emu_jax.nn.functional import Params
from emu_jax.tasks.base import Frozen, Task
from emu_jax.tasks.generation import Generation
from emu_jax.tasks.upsampling import LOW_CODEC, LowTokens
from emu_jax.text.encoder import TextEncoder


def open_caches(
    config: ConfigDict,
    task: Task,
    frozen: Mapping[str, Params],
    sources: Sequence[Selection],
    spec: StreamSpec,
) -> Caches:
    """Latents where ``data.cache_latents``, in pixel space decoded pictures; every encoder's texts
    where ``data.cache_text``.
    """
    data = config.data
    encoders: Mapping[str, TextEncoder] = getattr(task, "encoders", {})
    if not data.cache_latents and not (data.cache_text and encoders):
        return Caches()
    if not data.cache_dir:
        raise UserError("data.cache_latents and data.cache_text need data.cache_dir.")
    root = epath.Path(data.cache_dir).expanduser()
    moments, text = None, {}
    if data.cache_latents:
        if not isinstance(task, Generation):
            raise UserError(f"data.cache_latents: a {config.task} task has no latents to cache.")
        moments = _latents(root, task, frozen, sources, spec)
    if data.cache_text:
        texts = Captions(sources).texts
        for name, encoder in encoders.items():
            text[name] = _text(root, name, encoder, task.frozen[name], frozen[name], texts)
    return Caches(moments, text)


def _latents(
    root: epath.Path,
    task: Generation,
    frozen: Mapping[str, Params],
    sources: Sequence[Selection],
    spec: StreamSpec,
) -> Cache:
    codec = task.frozen["codec"].fingerprint if "codec" in task.frozen else "none"
    made_from = moments_fingerprint(spec, sources, codec, "float32")
    if isinstance(task.low, LowTokens):
        made_from["low encoder"] = task.frozen[LOW_CODEC].fingerprint
        made_from["low factor"] = str(task.low.factor)
    folder = root / f"latents_{digest(made_from)[:16]}"
    if folder.exists():
        return Cache.open(folder, made_from)
    codecs = {name: frozen[name] for name in ("codec", LOW_CODEC) if name in frozen}
    cached = jax.jit(task.cached)

    def encode(image: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(cached(codecs, image))

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
    # Beside weights and dtype: length, which layer is taken, whether there is a pooled vector.
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
