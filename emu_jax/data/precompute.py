"""Building the caches: the moments of every image and the text states of every caption.

The encoders are passed as callables, already jitted. Images go through the same loader as in
training, so that cached and online rows have the same pixels and sizes; with flips, each image has
two rows: 2 i as it is and 2 i + 1 mirrored.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from emu_jax.data.cache import (
    ALONE,
    Cache,
    Fingerprint,
    Rows,
    Together,
    build,
    content_keys,
    text_keys,
)
from emu_jax.data.mixture import Selection, captions_fingerprint
from emu_jax.data.pipeline import (
    Loader,
    StreamSpec,
    group_name,
    images_fingerprint,
    stream,
)
from emu_jax.data.plan import SequentialPlan

# uint8 [b, h, w, 3] -> arrays of b rows by name: moments [b, h', w', 2c] and those of a task
EncodeImages = Callable[[np.ndarray], Mapping[str, np.ndarray]]
EncodeTexts = Callable[[list[str]], Mapping[str, np.ndarray]]  # -> states, mask and perhaps pooled


def pixels_fingerprint(spec: StreamSpec) -> dict[str, str]:
    """What the pixels of a cached row depend on beside the image and its bucket."""
    found = {"crop": "centre", "background": str(tuple(spec.background))}
    return found | ({"decoding": "scaled"} if spec.scaled_decoding else {})


def text_fingerprint(encoder: str, dtype: str) -> dict[str, str]:
    """What cached text states depend on; `encoder` is a fingerprint of weights."""
    return {"encoder": encoder, "dtype": dtype}


def cache_moments(
    directory: str | os.PathLike,
    spec: StreamSpec,
    selections: Sequence[Selection],
    encode: EncodeImages,
    made_from: Fingerprint,
    together: Together = ALONE,
) -> Cache:
    """The output of `encode` for every selected record and its sizes, in one group per bucket.

    `made_from` identifies the encoder and has `pixels_fingerprint(spec)`.
    """
    copies = 2 if spec.flip else 1
    plain = replace(
        spec,
        sequential=True,
        crop="centre",
        flip=False,
        num_steps=None,
        further=(),
        columns={},
        captions=(),
    )
    loader = Loader(plain, selections, tokenize={})
    roster = loader.plan.roster
    hashes = [selection.source.manifest.column("sha256") for selection in selections]
    keys = {}
    for bucket, shape in enumerate(roster.buckets):
        members = [source.all(bucket) for source in roster.members]
        own = [text for of, rows in zip(hashes, members, strict=True) for text in of[rows]]
        if own:
            of_copies = [content_keys(own, copy) for copy in range(copies)]
            keys[group_name(shape)] = np.stack(of_copies, 1).reshape(-1)

    def compute(missing: Mapping[str, np.ndarray]) -> tuple[int, Iterator[Rows]]:
        wanted = {name: set(rows.tolist()) for name, rows in missing.items()}
        groups = [missing.get(group_name(shape), np.zeros(0, int)) for shape in roster.buckets]
        chosen = [np.unique(rows // copies) for rows in groups]
        plan = SequentialPlan(roster, spec.batch_size, spec.seed, chosen)
        loader.plan = plan
        return len(plan), rows_of(plan, wanted)

    def rows_of(plan: SequentialPlan, wanted: Mapping[str, set[int]]) -> Iterator[Rows]:
        with closing(stream(loader)) as batches:
            for n, batch in enumerate(batches):
                bucket, images = plan.images(n)
                group, count = group_name(roster.buckets[bucket]), len(images)
                for copy in range(copies):
                    positions = images * copies + copy
                    new = np.array([p in wanted[group] for p in positions.tolist()])
                    if not new.any():
                        continue
                    image = batch["image"]
                    encoded = encode(np.ascontiguousarray(image[:, :, ::-1]) if copy else image)
                    arrays = {name: np.asarray(x)[:count][new] for name, x in encoded.items()}
                    arrays["sizes"] = batch["sizes"][:count][new]
                    yield Rows(group, positions[new], arrays)

    about = images_fingerprint(spec, selections)
    return build(directory, made_from, keys, compute, about, together)


def cache_text(
    directory: str | os.PathLike,
    texts: Sequence[str],
    encode: EncodeTexts,
    made_from: Fingerprint,
    batch_size: int = 64,
    together: Together = ALONE,
) -> Cache:
    """The states of `Captions(selections).texts` in one group, "text", in that order."""

    def compute(missing: Mapping[str, np.ndarray]) -> tuple[int, Iterable[Rows]]:
        positions = missing["text"]
        starts = range(0, len(positions), batch_size)
        return len(starts), (encoded(positions[i : i + batch_size]) for i in starts)

    def encoded(positions: np.ndarray) -> Rows:
        batch = [texts[int(i)] for i in positions]
        padded = batch + [""] * (batch_size - len(batch))  # one shape, one compilation
        arrays = {name: np.asarray(a)[: len(batch)] for name, a in encode(padded).items()}
        return Rows("text", positions, arrays)

    keys = {"text": text_keys(texts)}
    return build(directory, made_from, keys, compute, captions_fingerprint(texts), together)


def open_texts(directory: str | os.PathLike, texts: Sequence[str], made_from: Fingerprint) -> Cache:
    """What `cache_text` has computed. Raises UserError if it is not all there."""
    keys = {"text": text_keys(texts)}
    return Cache.open(directory, made_from, keys, captions_fingerprint(texts))
