"""The judge's loss against a plain loop, its augmentation's invariants, its padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.contrastive import ContrastiveModel
from emu_jax.nn.functional import Network
from emu_jax.tasks.base import Context
from emu_jax.tasks.contrastive import Contrastive

KEY = jax.random.key(0)
STILL = dict(zoom=0.0, shift=0.0, colour=0.0, blur=0.0, noise=0.0)


class Vectors:
    """A text encoder whose tokens are its pooled vectors."""

    def apply(self, params, ids, mask):
        return Encoded(ids[:, None], mask, ids)


def judge(**changes):
    def build(rngs):
        return ContrastiveModel(text_width=5, widths=(8, 8), blocks=1, width=6, groups=4, rngs=rngs)

    fields = dict(encoders={"v": Vectors()}, groups={}, frozen={}, **(STILL | changes))
    return Contrastive(model=Network(build), **fields)


def rows(n, texts):
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8)
    tokens = {"v": {"ids": jnp.asarray(texts, jnp.float32), "mask": jnp.ones((n, 1), bool)}}
    return {"image": jnp.asarray(images), "tokens": tokens}


def expected(task, params, batch, used):
    """(1) of the module, pair by pair in float64, duplicates of a text left out."""
    seen = np.asarray(task.embed_images(params, batch["image"]).embedding, np.float64)
    ids = np.asarray(batch["tokens"]["v"]["ids"], np.float64)
    read = np.asarray(task.embed_texts(params, {"v": {}}, batch), np.float64)
    scale = np.exp(float(params["logit_scale"]))
    direction = ids / np.linalg.norm(ids, axis=1, keepdims=True)
    losses = []
    for i in used:
        others = [j for j in used if j == i or direction[i] @ direction[j] <= 0.95]
        one = np.array([scale * seen[i] @ read[j] for j in others])
        two = np.array([scale * seen[j] @ read[i] for j in others])
        own = scale * seen[i] @ read[i]
        losses.append((np.log(np.exp(one).sum()) + np.log(np.exp(two).sum())) / 2 - own)
    return np.mean(losses)


def test_the_loss_is_the_symmetric_cross_entropy_without_equal_texts():
    task = judge()
    params, state = task.init(KEY)
    texts = np.random.default_rng(1).normal(size=(6, 5))
    texts[4] = 2 * texts[1]  # the same direction: no counter-example to one another
    batch = rows(6, texts)
    loss, *_ = task.loss("judge", Context(params, {"v": {}}, state, {"train": batch}, KEY))
    np.testing.assert_allclose(loss, expected(task, params, batch, range(6)), rtol=1e-5)
    batch["tokens"]["v"]["ids"] = batch["tokens"]["v"]["ids"].at[4, 0].add(9.0)
    other, *_ = task.loss("judge", Context(params, {"v": {}}, state, {"train": batch}, KEY))
    np.testing.assert_allclose(other, expected(task, params, batch, range(6)), rtol=1e-5)
    assert abs(other - loss) > 1e-3


def test_padding_takes_no_part_in_validation():
    task = judge()
    params, state = task.init(KEY)
    batch = rows(5, np.random.default_rng(1).normal(size=(5, 5)))
    batch["valid"] = jnp.array([True, True, True, True, False])
    sums = task.validate(Context(params, {"v": {}}, state, {"train": batch}, KEY))
    total, count = sums["loss"]
    assert count == 4
    np.testing.assert_allclose(total / count, expected(task, params, batch, range(4)), rtol=1e-5)


def test_embeddings_have_length_one_and_the_scale_is_bounded():
    task = judge()
    params, _ = task.init(KEY)
    batch = rows(4, np.random.default_rng(1).normal(size=(4, 5)))
    seen = task.embed_images(params, batch["image"])
    np.testing.assert_allclose(jnp.linalg.norm(seen.embedding, axis=1), 1, rtol=1e-5)
    assert seen.features.shape == (4, 16)
    same = jnp.eye(2)
    hot = task.model({**params, "logit_scale": jnp.asarray(50.0)}, same, same, method="logits")
    np.testing.assert_allclose(hot, 100 * same, rtol=1e-5)


def test_augmentation_without_strength_changes_nothing_and_keeps_a_bare_background():
    picture = jax.random.uniform(KEY, (3, 16, 16, 3), minval=-1.0)
    np.testing.assert_allclose(judge().augment(KEY, picture), picture, atol=1e-5)
    blank = jnp.full((3, 16, 16, 3), 0.4)
    moved = judge(zoom=0.5, shift=0.4).augment(KEY, blank)
    np.testing.assert_allclose(moved, blank, atol=1e-5)


@pytest.mark.parametrize("name", ["zoom", "shift", "colour", "blur", "noise"])
def test_each_augmentation_acts_within_range_and_by_the_key_alone(name):
    picture = jax.random.uniform(KEY, (3, 16, 16, 3), minval=-1.0)
    task = judge(**{name: 0.5})
    once = task.augment(KEY, picture)
    assert jnp.abs(once).max() <= 1
    assert all(jnp.abs(once - picture).mean((1, 2, 3)) > 1e-2)
    np.testing.assert_array_equal(once, task.augment(KEY, picture))
    assert jnp.abs(once - task.augment(jax.random.key(1), picture)).mean() > 1e-3


def test_training_teaches_which_text_is_whose():
    task = judge()
    params, state = task.init(KEY)
    texts = np.random.default_rng(1).normal(size=(8, 5))
    batch = {"train": rows(8, texts)}

    @jax.jit
    def loss_and_step(params):
        def loss(params):
            return task.loss("judge", Context(params, {"v": {}}, state, batch, KEY)).value

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    first, params = loss_and_step(params)
    for _ in range(60):
        last, params = loss_and_step(params)
    assert last < 0.5 * first
