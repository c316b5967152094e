"""Building the caches: the moments of every image and the text states of every caption.

The encoders are passed as callables, already jitted. Images go through the same loader as in
training, so that cached and online rows have the same pixels and sizes; with flips, each image has
two rows: 2 i as it is and 2 i + 1 mirrored.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from emu_jax.data.cache import Cache, Fingerprint, Rows, Spec, build
from emu_jax.data.mixture import Selection, captions_fingerprint
from emu_jax.data.pipeline import (
    Loader,
    StreamSpec,
    group_name,
    stream,
)
from emu_jax.data.plan import SequentialPlan

# uint8 [b, h, w, 3] -> arrays of b rows by name: moments [b, h', w', 2c] and those of a task
EncodeImages = Callable[[np.ndarray], Mapping[str, np.ndarray]]
EncodeTexts = Callable[[list[str]], Mapping[str, np.ndarray]]  # -> states, mask and perhaps pooled


def text_fingerprint(texts: Sequence[str], encoder: str, dtype: str) -> dict[str, str]:
    """What cached text states depend on; `encoder` is a fingerprint of weights."""
    return {"encoder": encoder, "dtype": dtype, **captions_fingerprint(texts)}


def cache_moments(
    directory: str | os.PathLike,
    spec: StreamSpec,
    selections: Sequence[Selection],
    encode: EncodeImages,
    fingerprint: Fingerprint,
) -> Cache:
    """The output of `encode` for every selected record and its sizes, in one group per bucket."""
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
    plan = loader.plan
    assert isinstance(plan, SequentialPlan)
    layout = {}
    for bucket, images in zip(plan.roster.buckets, plan.roster.counts.sum(0), strict=True):
        if images:
            example = encode(np.zeros((spec.batch_size, *bucket, 3), np.uint8))
            rows = int(images) * copies
            layout[group_name(bucket)] = {
                **{name: Spec((rows, *x.shape[1:]), x.dtype.name) for name, x in example.items()},
                "sizes": Spec((rows, 6), "int32"),
            }

    def pieces(start: int) -> Iterator[Rows]:
        with closing(stream(loader, start)) as batches:
            for n, batch in enumerate(batches, start):
                bucket, first, stop = plan.place(n)
                image = batch["image"]
                views = [image, np.ascontiguousarray(image[:, :, ::-1])][:copies]
                encoded = [encode(view) for view in views]
                arrays = {"sizes": np.repeat(batch["sizes"][: stop - first], copies, 0)}
                for name in encoded[0]:
                    both = np.stack([np.asarray(view[name]) for view in encoded], 1)
                    arrays[name] = both[: stop - first].reshape(-1, *both.shape[2:])
                group = group_name(plan.roster.buckets[bucket])
                yield Rows(group, first * copies, arrays)

    return build(directory, fingerprint, layout, pieces, loader.steps)


def cache_text(
    directory: str | os.PathLike,
    texts: Sequence[str],
    encode: EncodeTexts,
    fingerprint: Fingerprint,
    batch_size: int = 64,
) -> Cache:
    """The states of `Captions(selections).texts` in one group, "text", in that order."""

    def encoded(start: int) -> dict[str, np.ndarray]:
        batch = list(texts[start : start + batch_size])
        padded = batch + [""] * (batch_size - len(batch))  # one shape, one compilation
        return {name: np.asarray(a)[: len(batch)] for name, a in encode(padded).items()}

    layout = {
        "text": {
            name: Spec((len(texts), *array.shape[1:]), array.dtype.name)
            for name, array in encoded(0).items()
        }
    }
    starts = range(0, len(texts), batch_size)

    def pieces(done: int) -> Iterator[Rows]:
        for start in starts[done:]:
            yield Rows("text", start, encoded(start))

    return build(directory, fingerprint, layout, pieces, len(starts))
