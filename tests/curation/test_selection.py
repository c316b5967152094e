"""Exact selection by several passes, against sorting everything at once."""

import numpy as np
import pytest

from emu_jax.curation.selection import Largest, keys_of, ordered, value_of


@pytest.mark.parametrize("case", range(24))
def test_the_largest_of_every_group_are_chosen(case):
    draw = np.random.default_rng(case)
    n, groups = int(draw.integers(1, 400)), int(draw.integers(1, 5))
    values = draw.normal(size=n) if case % 2 else draw.integers(-2, 3, n).astype(float)
    values[draw.random(n) < 0.1] = np.nan
    ties = draw.integers(0, 2**63, n).astype(np.uint64) if case % 3 else np.zeros(n, np.uint64)
    keys, group = keys_of(values, ties), draw.integers(-1, groups, n)
    count = draw.integers(0, n + 3, groups)
    cuts = np.sort(draw.integers(0, n + 1, 3)).tolist()

    def parts():
        for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
            yield keys[start:stop], group[start:stop]

    wanted, left = np.zeros(n, bool), count.tolist()
    for i in sorted(range(n), key=lambda i: (-int(keys[i]), i)):
        if group[i] >= 0 and left[group[i]] > 0:
            left[group[i]] -= 1
            wanted[i] = True
    found = np.concatenate(list(Largest(parts, count)))
    assert np.array_equal(found, wanted)


def test_numbers_keep_their_order_and_come_back():
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(size=99), [0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40]])
    values = values.astype(np.float32)
    places = ordered(values)
    assert np.array_equal(np.argsort(values, kind="stable"), np.argsort(places, kind="stable"))
    assert [value_of(int(place) << 32) for place in places] == values.tolist()
    assert ordered(np.array([np.nan], np.float32))[0] < places.min()
