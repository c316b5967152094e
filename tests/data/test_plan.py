import pickle
import time
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from emu_jax.data.hashing import mix, shuffled, uniform
from emu_jax.data.plan import BatchPlan, SequentialPlan
from emu_jax.data.roster import BLOCK, FILES, Everything, Members, Roster
from emu_jax.data.shares import floor_sum
from emu_jax.errors import UserError

SHAPES = [(64, 64), (48, 80), (80, 48)]


def make_roster(sizes=(500, 130), buckets=3):
    rng = np.random.default_rng(0)
    return Roster.of([rng.integers(-1, buckets, size) for size in sizes], SHAPES[:buckets])


@pytest.fixture(params=["counted", "computed"])
def _definition(request, monkeypatch):
    """Both definitions of the shares: see shares.py."""
    if request.param == "computed":
        monkeypatch.setattr("emu_jax.data.plan.COUNTED", 0)


both = pytest.mark.usefixtures("_definition")


def same(a, b):
    return a.bucket == b.bucket and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("sources", "records", "seeds", "valid")
    )


def test_mix_is_splitmix64():
    # The generator's first outputs from seed 0 (Steele et al. 2014), known everywhere.
    assert int(mix(0)) == 0xE220A8397B1DCDAF
    assert len(np.unique(mix(1, np.arange(10_000)))) == 10_000
    assert mix(3, np.arange(4))[2] == mix(3, 2)


def test_uniform_is_uniform():
    draw = uniform(7, np.arange(100_000))
    assert draw.min() >= 0 and draw.max() < 1
    assert np.allclose(np.histogram(draw, 10, (0, 1))[0] / 1e5, 0.1, atol=0.004)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000])
def test_shuffle_is_a_permutation(size):
    assert sorted(shuffled(np.arange(size), size, mix(5)[None])) == list(range(size))


def test_every_permutation_is_equally_likely():
    size, trials = 4, 24_000
    key = mix(11, np.arange(trials))[:, None]
    seen = Counter(map(tuple, shuffled(np.arange(size), size, key).tolist()))
    assert set(seen) == set(permutations(range(size)))
    chi2 = sum((count - trials / 24) ** 2 / (trials / 24) for count in seen.values())
    assert chi2 < 49.7  # 23 degrees of freedom, p = 0.001


@both
def test_batch_is_a_pure_function_of_seed_and_step():
    plan = BatchPlan(make_roster(), [0.9, 0.1], 16, seed=3)
    forward = [plan.batch(n) for n in range(50)]
    assert all(same(forward[n], plan.batch(n)) for n in reversed(range(50)))
    assert same(BatchPlan(make_roster(), [0.9, 0.1], 16, seed=3).batch(37), forward[37])
    assert same(pickle.loads(pickle.dumps(plan)).batch(49), forward[49])
    assert not same(BatchPlan(make_roster(), [0.9, 0.1], 16, seed=4).batch(37), forward[37])
    assert len(np.unique([batch.seeds for batch in forward])) == 50 * 16


@both
def test_random_access_across_chunks():
    far = BatchPlan(make_roster(), [0.9, 0.1], 8, seed=3)
    far.batch(100_000)
    near = BatchPlan(make_roster(), [0.9, 0.1], 8, seed=3)
    for n in (4095, 4096, 12_288, 4096, 0):
        assert same(near.batch(n), far.batch(n))


@both
def test_rows_come_from_their_bucket():
    roster = make_roster()
    plan = BatchPlan(roster, [0.9, 0.1], 16, seed=3)
    for n in range(100):
        batch = plan.batch(n)
        k = SHAPES.index(batch.bucket)
        for s, record in zip(batch.sources, batch.records, strict=True):
            assert record in roster.members[s].all(k)


@both
def test_every_record_once_an_epoch():
    roster = make_roster()
    plan = BatchPlan(roster, [0.6, 0.4], 16, seed=3)
    streams = {}
    for n in range(400):
        batch = plan.batch(n)
        for s, record in zip(batch.sources, batch.records, strict=True):
            streams.setdefault((s, SHAPES.index(batch.bucket)), []).append(record)
    assert len(streams) == 6
    for (s, k), taken in streams.items():
        members = roster.members[s].all(k)
        # Rows are dealt out within a batch, so epochs overlap there: count instead of cutting.
        low, high = len(taken) // len(members), -(-len(taken) // len(members))
        counts = Counter(taken)
        assert set(counts) == set(members) and set(counts.values()) <= {low, high}


@both
def test_epochs_are_different_orders():
    plan = BatchPlan(Roster.of([np.zeros(16, int)], SHAPES[:1]), [1.0], 16, seed=0)
    epochs = [tuple(plan.batch(n).records) for n in range(20)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len(set(epochs)) == 20


@both
def test_a_set_smaller_than_the_batch_wraps():
    plan = BatchPlan(Roster.of([np.zeros(3, int)], SHAPES[:1]), [1.0], 8, seed=0)
    assert sorted(Counter(plan.batch(0).records).values()) == [2, 3, 3]


def test_weights_and_buckets_in_the_limit():
    roster = make_roster()
    weights = np.array([0.9, 0.1])
    plan = BatchPlan(roster, 5 * weights, 10, seed=1)
    shares = [plan._shares.at(n) for n in range(2000)]
    for n, share in enumerate(shares[:50]):
        batch = plan.batch(n)
        assert np.bincount(batch.sources, minlength=2).tolist() == share.rows.tolist()
        assert batch.bucket == SHAPES[share.bucket]
    assert np.mean([share.rows[1] for share in shares]) / 10 == pytest.approx(0.1, abs=0.005)
    expected = (weights[:, None] * roster.counts / roster.counts.sum(1, keepdims=True)).sum(0)
    seen = np.bincount([share.bucket for share in shares]) / 2000
    assert seen == pytest.approx(expected, abs=0.035)
    # With one bucket the rows are shared out exactly: 10 * 0.1 = 1 row of every batch.
    one = BatchPlan(make_roster(buckets=1), [0.9, 0.1], 10, seed=1)
    assert {int(one._shares.at(n).rows[1]) for n in range(200)} == {1}
    # and a share below one row is met on average: 4 * 0.1 = 0.4.
    small = BatchPlan(make_roster(buckets=1), [0.9, 0.1], 4, seed=1)
    mean = np.mean([small._shares.at(n).rows[1] for n in range(1500)])
    assert mean == pytest.approx(0.4, abs=0.04)


def test_a_million_steps_are_reached_quickly():
    plan = BatchPlan(make_roster((100_000, 10_000)), [0.9, 0.1], 2048, seed=0)
    start = time.process_time()
    plan.batch(1_000_000)
    assert time.process_time() - start < 1


@both
def test_what_was_taken_before_is_the_sum_of_what_was_taken():
    plan = BatchPlan(make_roster((500, 130, 7)), [0.6, 0.3, 0.1], 16, seed=3)
    taken = np.zeros((3, 3), int)
    for n in range(1500):
        share = plan._shares.at(n)
        assert share.rows.sum() == 16 and share.before.tolist() == taken[share.bucket].tolist()
        taken[share.bucket] += share.rows


def test_a_computed_share_is_met_at_every_step(monkeypatch):
    """Within a few batches of the exact share, even far away, where summing would take hours."""
    monkeypatch.setattr("emu_jax.data.plan.COUNTED", 0)
    roster = make_roster()
    plan = BatchPlan(roster, [0.9, 0.1], 16, seed=1)
    shares = np.array([0.9, 0.1])[:, None] * roster.counts / roster.counts.sum(1, keepdims=True)
    start = time.process_time()
    for n in (100, 10_000, 10**9, 10**12):
        share, batch = plan._shares.at(n), plan.batch(n)
        assert batch.bucket == SHAPES[share.bucket] and len(batch.records) == 16
        assert np.abs(share.before - 16 * n * shares[:, share.bucket]).max() < 100
    assert time.process_time() - start < 0.05


def test_floor_sum_is_the_sum():
    rng = np.random.default_rng(0)
    for count, modulus, step, start in rng.integers(1, 200, (200, 4)).tolist():
        expected = sum((step * i + start) // modulus for i in range(count))
        assert floor_sum(count, modulus, step, start) == expected
    assert floor_sum(0, 7, 3, 2) == 0


def test_bad_weights_are_refused():
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(UserError, match="weight"):
            BatchPlan(make_roster(), weights, 4, seed=0)


def test_sequential_plan_has_each_record_once():
    roster = make_roster()
    plan = SequentialPlan(roster, 16, seed=0)
    seen = []
    for n in range(len(plan)):
        batch = plan.batch(n)
        bucket, start, stop = plan.place(n)
        assert batch.bucket == SHAPES[bucket] and batch.valid.sum() == stop - start
        sources, records = batch.sources[batch.valid], batch.records[batch.valid]
        assert np.array_equal(roster.position(bucket, sources, records), np.arange(start, stop))
        seen += zip(sources, records, [bucket] * len(records), strict=True)
    chosen = [(s, r, k) for s in (0, 1) for k in range(3) for r in roster.members[s].all(k)]
    assert sorted(seen) == sorted(chosen) and len(set(seen)) == len(seen)
    with pytest.raises(IndexError):
        plan.batch(len(plan))


def test_sequential_seeds_belong_to_records():
    def seeds(batch_size):
        plan = SequentialPlan(make_roster(), batch_size, seed=0)
        batches = [plan.batch(n) for n in range(len(plan))]
        return {
            (s, r): seed
            for batch in batches
            for s, r, seed in zip(batch.sources, batch.records, batch.seeds, strict=True)
        }

    assert seeds(16) == seeds(7)


@pytest.mark.parametrize("records", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_members_are_found_by_number_and_back(records, tmp_path):
    bucket_of = np.random.default_rng(records).integers(-1, 4, records)
    bucket_of[bucket_of == 2] = 1  # an empty bucket
    bucket_of[0] = 3
    members = Members.of(bucket_of, 4)
    for name, array in zip(FILES, (members._codes, members._before), strict=True):
        np.save(tmp_path / name, array)
    mapped = Members.open(tmp_path)
    assert len(pickle.dumps(mapped)) < 300
    for found in (members, mapped, pickle.loads(pickle.dumps(mapped))):
        for k in range(4):
            expected = np.flatnonzero(bucket_of == k)
            assert found.counts[k] == len(expected)
            assert np.array_equal(found.pick(k, np.arange(len(expected))), expected)
            assert np.array_equal(found.position(k, expected), np.arange(len(expected)))
            assert np.array_equal(found.all(k), expected)


def test_everything_is_all_members_of_one_bucket():
    few, all_ = Everything(9, 1, 3), Members.of(np.full(9, 1), 3)
    index = np.array([4, 0, 8])
    assert np.array_equal(few.counts, all_.counts)
    assert np.array_equal(few.pick(1, index), all_.pick(1, index))
    assert np.array_equal(few.position(1, index), all_.position(1, index))
