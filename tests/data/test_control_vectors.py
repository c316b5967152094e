"""Controls of a distillation: vectors of other prompts, and random ones."""

import pickle

import numpy as np

from emu_jax.data.precompute import cache_text, text_fingerprint
from emu_jax.data.vectors import ARRAY, GROUP, ControlVectors

TEXTS = ["", *sorted(f"{count} {thing}s" for count in range(30) for thing in ("apple", "fox"))]
EVERY = np.arange(len(TEXTS))


def vectors_of(texts):
    rows = [np.random.default_rng(list(text.encode())).normal(3, 2, (2, 40)) for text in texts]
    return np.stack(rows).astype(np.float32) * np.array([[[bool(text)]] for text in texts])


def cached(folder, texts=TEXTS):
    made_from = text_fingerprint("w", "float32")
    return cache_text(folder, texts, lambda x: {ARRAY: vectors_of(x).astype(np.float32)}, made_from)


def test_a_shuffled_vector_is_another_prompts_and_depends_on_the_prompt_alone(tmp_path):
    cache = cached(tmp_path / "cache")
    own = cache.take(EVERY, GROUP)[ARRAY]
    control = ControlVectors(cache, TEXTS, "shuffled", seed=4)
    found = control.take(EVERY, GROUP)[ARRAY]
    assert not found[0].any()
    # Every vector is used once, none by its own prompt.
    np.testing.assert_array_equal(np.sort(found[1:, 0, 0]), np.sort(own[1:, 0, 0]))
    assert not np.any(np.all(found[1:] == own[1:], axis=(1, 2)))
    again = pickle.loads(pickle.dumps(control)).take(EVERY[::-1], GROUP)[ARRAY]
    np.testing.assert_array_equal(again[::-1], found)
    other = ControlVectors(cache, TEXTS, "shuffled", seed=5).take(EVERY, GROUP)[ARRAY]
    assert np.any(other != found)


def test_a_random_vector_has_the_moments_of_the_true_ones(tmp_path):
    cache = cached(tmp_path / "cache")
    own = cache.take(EVERY[1:], GROUP)[ARRAY]
    control = ControlVectors(cache, TEXTS, "random")
    found = control.take(EVERY, GROUP)[ARRAY]
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 2, 40) and not found[0].any()
    np.testing.assert_allclose(found[1:].mean(), own.mean(), atol=0.1)
    np.testing.assert_allclose(found[1:].std(), own.std(), rtol=0.05)
    correlation = np.corrcoef(found[1:].ravel() - 3, own.ravel() - 3)[0, 1]
    assert abs(correlation) < 0.1
    assert len(np.unique(found[1:, 0, 0])) == len(TEXTS) - 1
    np.testing.assert_array_equal(control.take(EVERY[[7, 0, 2]], GROUP)[ARRAY], found[[7, 0, 2]])
    assert np.any(ControlVectors(cache, TEXTS, "random", 1).take(EVERY, GROUP)[ARRAY] != found)
