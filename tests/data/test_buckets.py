import numpy as np
import pytest

from emu_jax.data.buckets import assign, make_buckets, tabulated
from emu_jax.errors import UserError


def test_buckets_by_hand():
    # 64^2 = 4096; long sides 64, 80, 96, 112, 128 give short sides 64, 48 (51.2), 32 (42.7),
    # 32 (36.6), 32; of these 96 / 32 = 3 and more are above a ratio of 2.
    assert make_buckets(64, 16, 2.0) == [(80, 48), (64, 64), (48, 80)]
    assert make_buckets(64, 16, 3.0) == [(96, 32), (80, 48), (64, 64), (48, 80), (32, 96)]
    assert make_buckets(512, 64, 1.0) == [(512, 512)]


def test_sdxl_shapes():
    buckets = make_buckets(1024, 64, 2.0)
    assert {(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (704, 1408)} <= set(buckets)
    for h, w in buckets:
        assert (w, h) in buckets
        assert h % 64 == w % 64 == 0 and h * w <= 1024**2 and max(h / w, w / h) <= 2
    assert [w / h for h, w in buckets] == sorted(w / h for h, w in buckets)


def test_assignment_by_hand():
    buckets = [(64, 64), (48, 80), (80, 48)]  # in any order
    # The border between the square and the wide one is at sqrt(80 / 48) = 1.2910.
    width = np.array([100, 100, 129, 130, 1000, 10, 100, 100])
    height = np.array([100, 99, 100, 100, 10, 1000, 129, 130])
    assert assign(width, height, buckets).tolist() == [0, 0, 0, 1, 1, 2, 0, 2]
    assert assign(width, height, [(64, 64)]).tolist() == [0] * 8


def test_assignment_is_the_nearest():
    rng = np.random.default_rng(0)
    width, height = rng.integers(10, 3000, (2, 500))
    buckets = make_buckets(1024)
    distance = np.abs(np.log(width / height)[:, None] - [np.log(w / h) for h, w in buckets])
    assert np.array_equal(assign(width, height, buckets), distance.argmin(1))


@pytest.mark.parametrize("arguments", [(100, 64, 2.0), (32, 64, 2.0), (64, 0, 2.0), (64, 64, 0.5)])
def test_impossible_buckets_are_refused(arguments):
    with pytest.raises(UserError, match=r"max_ratio is|multiple"):
        make_buckets(*arguments)


def test_the_table_of_all_sizes_assigns_the_same(monkeypatch):
    monkeypatch.setattr("emu_jax.data.buckets._LONGEST", 320)
    buckets = make_buckets(512)
    find, rng = tabulated(buckets), np.random.default_rng(0)
    for longest in (321, 900):
        sides = rng.integers(1, longest, (2, 2000)).astype(np.int32)
        assert np.array_equal(find(*sides), assign(*sides, buckets))
