"""The steps of the funnel over small score tables, against plain numpy."""

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from emu_jax.curation import duplicates
from emu_jax.curation.choices import (
    KEPT,
    Balance,
    Duplicates,
    Sample,
    Threshold,
    Top,
    choose,
)
from emu_jax.curation.curating import funnel_lines
from emu_jax.curation.duplicates import find_pairs
from emu_jax.curation.scores import Scores, write_table
from emu_jax.curation.scoring import beam_options
from emu_jax.errors import UserError

N = 240
DRAW = np.random.default_rng(3)
SCORE = DRAW.normal(size=N).astype(np.float32)
LIKES = DRAW.integers(0, 1000, N)
CONCEPT = DRAW.choice(["cat", "dog", "rare"], N, p=[0.6, 0.38, 0.02])
MISSING, BROKEN = DRAW.random(N) < 0.05, DRAW.random(N) < 0.05
FAULT = np.where(SCORE < -1, "blurred", np.where(DRAW.random(N) < 0.1, "text", "")).astype(object)
HASH = DRAW.integers(-(2**63), 2**63 - 1, N)
VECTOR = DRAW.normal(size=(N, 8)).astype(np.float32)
VECTOR /= np.linalg.norm(VECTOR, axis=1, keepdims=True)
for i in range(0, 60, 3):  # groups of three: two near copies, one of them with two bits changed
    HASH[i + 1] = HASH[i] ^ (1 << (i % 60))
    HASH[i + 2] = HASH[i] ^ (1 << (i % 60)) ^ (1 << 61)
    VECTOR[i + 1] = VECTOR[i]


def tables(folder, shards):
    scores = Scores(shards, {"images": str(folder / "images"), "other": str(folder / "other")})
    for shard, rows in enumerate(np.array_split(np.arange(N), shards)):
        there = ~BROKEN[rows]
        images = {
            "damaged": ["" if ok else "broken" for ok in there],
            "fault": pa.array(FAULT[rows], pa.string()),
            "likes": pa.array(LIKES[rows].astype(float), mask=~there),
        }
        other = {
            "score": pa.array(SCORE[rows], mask=MISSING[rows] | ~there),
            "concept": pa.array(CONCEPT[rows].tolist(), mask=~there),
            "hash": pa.array(HASH[rows], mask=~there),
            "embedding": pa.array(list(VECTOR[rows].astype(np.float16)), pa.list_(pa.float16(), 8)),
            "embedding_hash": pa.array(np.zeros(len(rows), np.int64)),
        }
        write_table(pa.table(images), scores.path("images", shard))
        write_table(pa.table(other), scores.path("other", shard))
    return scores


@pytest.fixture(params=[1, 7])
def scores(tmp_path, request):
    return tables(epath.Path(tmp_path), request.param)


def kept(funnel):
    return funnel.left_by == KEPT


THERE = ~BROKEN & ~MISSING


def test_a_threshold_by_value_and_by_quantile(scores):
    steps = {"s": Threshold("score", at_least=-1.0, at_most=1.0)}
    assert np.array_equal(kept(choose(scores, steps, {})), THERE & (SCORE >= -1) & (SCORE <= 1))
    steps = {"s": Threshold("score", at_most=1.0, keep_missing=True)}
    wanted = ~BROKEN & (MISSING | (SCORE <= 1))
    assert np.array_equal(kept(choose(scores, steps, {})), wanted)
    steps = {"a": Threshold("likes", at_least=300), "s": Threshold("score", quantile_at_least=0.25)}
    before = ~BROKEN & (LIKES >= 300)
    ranked = np.sort(SCORE[before & THERE])
    value = ranked[int(0.25 * (len(ranked) - 1))]
    funnel = choose(scores, steps, {})
    assert np.array_equal(kept(funnel), before & THERE & (value <= SCORE))
    assert funnel.rows[-1].bounds == (pytest.approx(float(value)), None)
    assert [row.left for row in funnel.rows][:2] == [N, int((~BROKEN).sum())]


def test_the_best_of_every_concept_stay(scores):
    steps = {"b": Balance(20, weights={"score": 1.0})}
    found = kept(choose(scores, steps, {}))
    for name in ("cat", "dog"):
        own = np.flatnonzero(THERE & (name == CONCEPT))
        best = own[np.argsort(-SCORE[own])[:20]]
        assert np.array_equal(np.flatnonzero(found & (name == CONCEPT)), np.sort(best))
    rare = ~BROKEN & (CONCEPT == "rare")
    assert 0 < rare.sum() < 20 and np.array_equal(found & (CONCEPT == "rare"), rare)


def test_the_best_by_a_weighted_score_with_a_floor(scores):
    steps = {"t": Top(30, weights={"score": 1.0, "likes": -0.5}, floor=2)}
    usable = THERE
    total = (SCORE - SCORE[~BROKEN & ~MISSING].mean()) / SCORE[~BROKEN & ~MISSING].std()
    total = total - 0.5 * (LIKES - LIKES[~BROKEN].mean()) / LIKES[~BROKEN].std()
    order = [i for i in np.argsort(-total) if usable[i]]
    wanted = set()
    for name in ("cat", "dog", "rare"):
        wanted |= set([i for i in order if CONCEPT[i] == name][:2])
    for i in order:
        if len(wanted) < 30:
            wanted.add(i)
    funnel = choose(scores, steps, {}, by="concept")
    assert set(np.flatnonzero(kept(funnel)).tolist()) == {int(i) for i in wanted}
    assert sum(funnel.rows[-1].by.values()) == 30 and funnel.rows[-1].by["rare"] >= 2
    assert "t         " in funnel_lines(funnel)[-1]
    with pytest.raises(UserError, match=r"config\.steps\.t\.floor is 20, which makes"):
        choose(scores, {"t": Top(30, floor=20)}, {})


def test_a_sample_is_of_the_images_and_not_of_the_shards(tmp_path):
    found = [
        kept(choose(tables(epath.Path(tmp_path) / str(n), n), {"s": Sample(50, seed=seed)}, {}))
        for n, seed in ((1, 0), (9, 0), (1, 1))
    ]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert found[0].sum() == 50 and not (found[0] & BROKEN).any()


def test_steps_are_measured_against_known_faults(scores):
    step = Threshold("score", at_least=-0.5, removes="blurred", keep_missing=True)
    precision, recall = (
        choose(scores, {"s": step}, {}, labels="fault").rows[-1].precision,
        choose(scores, {"s": step}, {}, labels="fault").rows[-1].recall,
    )
    counted = ~BROKEN & (FAULT != "text")  # another fault counts for neither
    out = counted & ~MISSING & (SCORE < -0.5)
    assert precision == pytest.approx(np.mean(FAULT[out] == "blurred"))
    assert recall == pytest.approx(np.mean(out[counted & (FAULT == "blurred")]))


@pytest.mark.parametrize("match", ["hash", "both"])
def test_of_near_duplicates_the_best_that_is_there_stays(scores, tmp_path, match):
    step = Duplicates(match, distance=2, cosine=0.99, weights={"score": 1.0})
    out = epath.Path(tmp_path)
    folder = find_pairs(out, scores, step, "config.steps.d", beam_options(1, []))
    again = find_pairs(out, scores, step, "config.steps.d", beam_options(1, []))
    assert folder == again and len(list(folder.glob("*.parquet"))) == scores.count
    first = Threshold("likes", at_least=100)
    funnel = choose(scores, {"l": first, "d": step}, {"config.steps.d": folder})
    there = ~BROKEN & (LIKES >= 100)
    wanted = there.copy()
    value = np.where(MISSING, -np.inf, SCORE)
    size = 3 if match == "hash" else 2
    for i in range(0, 60, 3):
        group = [j for j in range(i, i + size) if there[j]]
        ranked = sorted(group, key=lambda j: -value[j])
        wanted[ranked[1:]] = False
    found = kept(funnel)
    unsure = [i for i in range(60) if (MISSING | ~there)[i - i % 3 : i - i % 3 + 3].sum() > 1]
    found[unsure] = wanted[unsure] = False  # several without a score: any of them may stay
    assert np.array_equal(found, wanted)


def test_pairs_are_those_of_comparing_all_with_all(tmp_path):
    scores = tables(epath.Path(tmp_path), 5)
    step = Duplicates("hash", distance=7)
    folder = find_pairs(epath.Path(tmp_path), scores, step, "d", beam_options(1, []))
    from emu_jax.curation.choices import read_pairs

    bits = HASH.view(np.uint64)
    near = np.bitwise_count(bits[:, None] ^ bits[None]) <= 7
    near &= ~BROKEN[:, None] & ~BROKEN[None] & (np.arange(N)[:, None] < np.arange(N))
    assert np.array_equal(read_pairs(folder), np.argwhere(near)) and near.sum() > 20


@pytest.mark.parametrize("distance", [2, 4])
def test_no_pair_of_a_large_band_is_missed(distance, monkeypatch):
    """Where a band has more images than are compared all with all."""
    monkeypatch.setattr(duplicates, "_ALL", 16)
    step, chance = Duplicates("hash", distance=distance), np.random.default_rng(0)
    # Forty drawings, ten copies of each. A band has one of four values: all bands are large.
    drawings = chance.choice(chance.integers(0, 256, 4), (40, 8)).astype(np.uint8)
    bits = np.repeat(drawings.view(np.uint64)[:, 0], 10)
    for _ in range(3):
        bits ^= np.uint64(1) << chance.integers(0, 64, len(bits)).astype(np.uint64)
    near = np.bitwise_count(bits[:, None] ^ bits[None]) <= distance
    near &= np.arange(400)[:, None] < np.arange(400)
    groups = {}
    for row, value in enumerate(bits.tolist()):
        member = duplicates.Member(row, np.uint64(value).astype(np.int64), 0, b"")
        member = member._replace(hash=member.bits)
        for band in range(8):
            groups.setdefault((band, (value >> (8 * band)) & 255), []).append(member)
    assert max(map(len, groups.values())) > 40
    found = {pair for group in groups.items() for pair in duplicates._compare(group, step)}
    assert found == set(map(tuple, np.argwhere(near).tolist())) and len(found) > 10


def test_a_column_that_is_missing_is_named(scores):
    with pytest.raises(UserError, match=r"config\.steps\.s\.column is 'scor'.*they have .*score"):
        choose(scores, {"s": Threshold("scor", at_least=0)}, {})
    with pytest.raises(UserError, match=r"config\.steps\.s\.column is 'concept'.*column of num"):
        choose(scores, {"s": Threshold("concept", at_least=0)}, {})
    with pytest.raises(UserError, match=r"config\.steps\.t\.weights\.like is 'like'"):
        choose(scores, {"t": Top(3, weights={"like": 1.0})}, {})
