"""Distances of sets against torch-fidelity's on the same features."""

import numpy as np
import pytest
import torch
from fidelity import module

from emu_jax.errors import UserError
from emu_jax.evaluation import distances
from emu_jax.evaluation.metrics import Statistics, frechet, frechet_to, mmd


def features(n, d=24, seed=0, mean=0.0):
    """Like those of a relu: positive, correlated."""
    draws = np.random.default_rng(seed)
    mixed = draws.normal(mean, 1, (n, d)) @ np.random.default_rng(99).normal(0, 1 / d**0.5, (d, d))
    return np.maximum(mixed, 0).astype(np.float32)


A, B = features(150), features(120, seed=1, mean=0.3)


def test_frechet_of_statistics_is_that_of_the_reference():
    fid = module("metric_fid")
    ours, theirs = (fid.fid_features_to_statistics(torch.tensor(x)) for x in (A, B))
    want = fid.fid_statistics_to_metric(ours, theirs, False)[fid.KEY_METRIC_FID]
    assert want > 0.1
    assert frechet(A, B) == pytest.approx(want, rel=1e-6)
    assert frechet_to(distances.statistics(B))(A) == pytest.approx(want, rel=1e-6)
    few = features(7, seed=3)  # a covariance of rank 6
    assert frechet_to(distances.statistics(few))(A) == pytest.approx(frechet(A, few), rel=1e-6)


def test_kid_draws_the_subsets_of_the_reference():
    kid = module("metric_kid")
    want = kid.kid_features_to_metric(
        torch.tensor(A), torch.tensor(B), kid_subsets=20, kid_subset_size=50, verbose=False
    )
    found = distances.kid(A, B, 20, 50)
    assert found.mean() == pytest.approx(want[kid.KEY_METRIC_KID_MEAN], rel=1e-4)
    assert found.std() == pytest.approx(want[kid.KEY_METRIC_KID_STD], rel=1e-4)
    assert distances.kid(A, A[:50], 200, 50).mean() == pytest.approx(mmd(A, A[:50]), abs=0.02)
    with pytest.raises(UserError, match="subsets of 1000 images, but the sets have 150 and 120"):
        distances.kid(A, B)


def test_precision_and_recall_of_the_reference(monkeypatch):
    reference = module("metric_prc").calculate_precision_recall_full
    inside = B[:60] * 0.8 + 0.2 * B[:60].mean(0)
    for generated, real in ((A, B), (inside, B)):
        precision, recall = reference(*(torch.tensor(x).double() for x in (generated, real)))
        assert precision > 0.1 and recall < 0.9
        found = distances.precision_recall(generated, real)
        assert found == pytest.approx((precision, recall), abs=1e-6)
        monkeypatch.setattr(distances, "_BLOCK", 32)
        assert distances.precision_recall(generated, real) == found
    with pytest.raises(UserError, match="more than 3 images, not 3"):
        distances.covered(A, B[:3])


def test_inception_score_of_the_reference():
    isc = module("metric_isc")
    logits = 3 * A
    want = isc.isc_features_to_metric(torch.tensor(logits))
    found = distances.inception_score(logits)
    assert found.mean() == pytest.approx(want[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert found.std() == pytest.approx(want[isc.KEY_METRIC_ISC_STD], rel=1e-6)
    assert found.mean() > 1.5
    with pytest.raises(UserError, match="10 images or more, not 9"):
        distances.inception_score(logits[:9])


def test_cmmd_is_its_double_loop():
    a, b = (x[:9].astype(float) for x in (A, B))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))

    def mean_kernel(x, y):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in x for q in y])

    want = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert want > 0.05
    assert distances.cmmd(a, b) == pytest.approx(want, rel=1e-6)


def test_statistics_are_read_as_data(tmp_path):
    file = tmp_path / "reference.npz"
    want = distances.statistics(B)
    distances.write_statistics(file, want)
    found = distances.read_statistics(file)
    np.testing.assert_array_equal(found.mean, want.mean)
    np.testing.assert_array_equal(found.covariance, want.covariance)
    with pytest.raises(UserError, match="There is no file"):
        distances.read_statistics(tmp_path / "absent.npz")
    np.savez(tmp_path / "code.npz", mu=np.array([print], object), sigma=want.covariance)
    np.savez(tmp_path / "other.npz", mean=want.mean)
    (tmp_path / "text.npz").write_text("mu")
    for name in ("code", "other", "text"):
        with pytest.raises(UserError, match=r"not an \.npz file with the arrays mu and sigma"):
            distances.read_statistics(tmp_path / f"{name}.npz")
    distances.write_statistics(file, Statistics(want.mean[1:], want.covariance))
    with pytest.raises(UserError, match=r"mu has shape \[23\] and sigma \[24, 24\]"):
        distances.read_statistics(file)
    with pytest.raises(UserError, match=r"\[150, 24\] and \[2, 23\]"):
        frechet_to(Statistics(want.mean[1:], want.covariance[1:, 1:]))(A)
