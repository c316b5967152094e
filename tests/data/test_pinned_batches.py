"""The batches of small data sets, pinned: a run that resumes with newer code reads the same rows.

The digests were computed before manifests had shards. A change of one of them changes the batches
of every stored run.
"""

import hashlib

import numpy as np
import pytest

from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Selection
from emu_jax.data.pipeline import Loader, StreamSpec

STEPS = (0, 1, 2, 17, 4095, 4096, 20_000)


class Table:
    """A source without images: its manifest has columns of every kind."""

    def __init__(self, name, count, seed):
        rng = np.random.default_rng(seed)
        self.name = name
        width, height = rng.integers(200, 2000, (2, count)).tolist()
        self.manifest = Manifest.from_rows(
            {
                "key": f"{name}-{i}",
                "width": width[i],
                "height": height[i],
                "sha256": hashlib.sha256(f"{name} {i}".encode()).hexdigest(),
                "captions": [f"{name} {i} {j}" for j in range(i % 4)],
                "source": ("here", "there")[i % 5 == 0],
            }
            for i in range(count)
        )


@pytest.fixture(scope="module")
def sources():
    return Table("a", 1000, 0), Table("b", 317, 1)


def loader(sources, weights, selects, **spec):
    parts = [
        Selection(source, weight, select)
        for source, weight, select in zip(sources, weights, selects, strict=False)
    ]
    return Loader(StreamSpec(side=512, **spec), parts, {"none": lambda texts: {}})


def digest(made):
    """sha256 over bucket, sources, records, seeds and captions of some batches."""
    found = hashlib.sha256()
    steps = range(len(made.plan)) if made.spec.sequential else STEPS
    for n in steps:
        rows = made.plan.batch(n)
        found.update(repr((rows.bucket, rows.sources.tolist(), rows.records.tolist())).encode())
        found.update(repr((rows.seeds.tolist(), rows.valid.tolist(), made.texts(n))).encode())
    return found.hexdigest()[:16]


CASES = {
    "one": ((1.0,), ("",), dict(batch_size=32, seed=0), "a9eda7470f2e6272"),
    "another seed": ((1.0,), ("",), dict(batch_size=32, seed=9), "11ed898098b2df1f"),
    "selected": (
        (1.0,),
        ("width > 1000 and source != there",),
        dict(batch_size=7, seed=1),
        "ff14ba6e85a90e44",
    ),
    "buckets": ((1.0,), ("",), dict(batch_size=16, seed=2, buckets=True), "9c7c5ba183dc2e42"),
    "mixture": ((0.7, 0.3), ("", ""), dict(batch_size=32, seed=3), "eae0e5ef5e79cc9f"),
    "mixture of buckets": (
        (3.0, 1.0),
        ("height < 1500", "source == here"),
        dict(batch_size=24, seed=4, buckets=True, bucket_step=32),
        "02b11a7286a12cd5",
    ),
    "larger than the set": (
        (1.0,),
        ("width < 230",),
        dict(batch_size=100, seed=5),
        "3ae488598bd283c3",
    ),
    "in order": (
        (1.0, 1.0),
        ("", "width != 300"),
        dict(batch_size=50, seed=6, buckets=True, sequential=True),
        "6c1ec60188806c4f",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_small_sets_keep_their_batches(sources, name):
    weights, selects, spec, expected = CASES[name]
    assert digest(loader(sources, weights, selects, **spec)) == expected
