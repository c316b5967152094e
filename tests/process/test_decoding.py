"""Parallel decoding against distributions in closed form: two tokens, all of whose conditionals a
table knows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.process.decoding import ParallelDecoding
from emu_jax.process.guidance import guided, rising
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.sampling import advance, sample, start, time_grid

KEY, ROWS = jax.random.key(1), 20_000
JOINT = np.array([[0.35, 0.05, 0.1], [0.02, 0.2, 0.03], [0.05, 0.05, 0.15]])
FIRST, SECOND = JOINT.sum(1), JOINT.sum(0)
SECOND_GIVEN, FIRST_GIVEN = JOINT / FIRST[:, None], (JOINT / SECOND).T  # [given, token]
CODES = len(JOINT)
PROCESS = MaskingProcess(CODES)


def oracle(x, t):
    """Logits [b, 2, k] of each token given the other, where the other is not masked."""
    first = jnp.concatenate([jnp.asarray(FIRST_GIVEN), jnp.asarray(FIRST)[None]])[x[:, 1]]
    second = jnp.concatenate([jnp.asarray(SECOND_GIVEN), jnp.asarray(SECOND)[None]])[x[:, 0]]
    return jnp.log(jnp.stack([first, second], 1))


def frequencies(temperature, steps, denoise=oracle):
    sampler = ParallelDecoding(temperature)

    @jax.jit
    def draw(key):
        x = PROCESS.prior(key, (ROWS, 2))
        return sample(denoise, PROCESS, sampler, time_grid(PROCESS, steps), key, x)

    x = np.asarray(draw(KEY))
    assert x.dtype == np.int32 and x.min() >= 0 and x.max() < CODES
    return np.bincount(x[:, 0] * CODES + x[:, 1], minlength=CODES**2).reshape(JOINT.shape) / ROWS


def error(found, expected):
    """In standard errors, the largest of all cells."""
    return np.max(np.abs(found - expected) / np.sqrt(expected * (1 - expected) / ROWS))


def test_two_steps_in_any_order_draw_the_joint_distribution():
    """A temperature so high that confidence has no say."""
    assert error(frequencies(1e4, 2), JOINT) < 4.5


def test_one_step_draws_each_token_by_itself():
    found = frequencies(4.0, 1)
    assert error(found, np.outer(FIRST, SECOND)) < 4.5 and error(found, JOINT) > 20


def test_without_temperature_the_more_likely_draw_stays():
    """Both are drawn by themselves, the likelier is kept, the other drawn anew given it."""
    expected = np.zeros_like(JOINT)
    for a in range(CODES):
        for b in range(CODES):
            chance = FIRST[a] * SECOND[b]
            if FIRST[a] > SECOND[b]:
                expected[a] += chance * SECOND_GIVEN[a]
            else:
                expected[:, b] += chance * FIRST_GIVEN[b]
    assert np.abs(FIRST[:, None] - SECOND).min() > 1e-3, "a tie would be decided by place"
    found = frequencies(0.0, 2)
    assert error(found, expected) < 4.5 and error(found, JOINT) > 10


def test_guidance_sharpens_as_it_rises():
    """One step from t = 1 has w = 1; of two steps the second, at t = 1/2, has w = 1 + (3 - 1)/2.

    With the other condition flat, logits w l are the distribution's w-th power.
    """

    def network(x, t, by):
        return oracle(x, t) * by["text"][:, None, None]

    ones = {"text": jnp.ones(ROWS)}
    denoise = guided(network, ones, jax.tree.map(jnp.zeros_like, ones), rising(3.0))
    assert error(frequencies(4.0, 1, denoise), np.outer(FIRST, SECOND)) < 4.5
    sharp = [rows**2 / (rows**2).sum(1, keepdims=True) for rows in (SECOND_GIVEN, FIRST_GIVEN)]
    expected = (FIRST[:, None] * sharp[0] + (SECOND[:, None] * sharp[1]).T) / 2
    assert error(frequencies(1e4, 2, denoise), expected) < 4.5


def flat(x, t):
    return jnp.zeros((*x.shape, CODES))


@pytest.mark.parametrize("steps", [3, 40])
def test_masks_fall_by_the_schedule_by_at_least_one_and_to_none(steps):
    """Twelve tokens: in 40 steps the cosine stands still where decoding goes on, one by one."""
    times, sampler = time_grid(PROCESS, steps), ParallelDecoding()
    state, left = start(sampler, PROCESS.prior(KEY, (2, 3, 4))), 12
    step = jax.jit(lambda state, i: advance(flat, PROCESS, sampler, times, KEY, state, i[None]))
    for i in range(steps):
        before, state = state.x, step(state, jnp.int32(i))
        cosine = np.floor(12 * np.cos(np.pi / 2 * (i + 1) / steps) + 1e-9)
        left = max(0, min(left - 1, cosine))
        assert np.all(np.sum(np.asarray(state.x) == CODES, axis=(1, 2)) == left)
        np.testing.assert_array_equal(np.where(before == CODES, state.x, before), state.x)
    assert left == 0


def test_known_tokens_never_change_and_the_rest_keeps_the_schedule():
    known = jax.random.randint(KEY, (3, 4, 4), 0, CODES)
    mask = jnp.zeros((4, 4), bool).at[:2].set(True)
    times, sampler = time_grid(PROCESS, 2), ParallelDecoding()
    begun = start(sampler, PROCESS.prior(KEY, known.shape))

    @jax.jit
    def run(begun):
        more = dict(known=known, known_mask=mask)
        first = advance(flat, PROCESS, sampler, times, KEY, begun, jnp.array([0]), **more)
        return first.x, sample(flat, PROCESS, sampler, times, KEY, begun.x, **more)

    half, whole = run(begun)
    for x in (half, whole):
        np.testing.assert_array_equal(x[:, :2], known[:, :2])
    assert np.all(np.sum(np.asarray(half) == CODES, axis=(1, 2)) == 5)  # of the 8: 8 cos(pi/4)
    assert np.all(whole < CODES) and not np.array_equal(whole[:, 2:], known[:, 2:])


def test_a_row_depends_on_its_own_key_alone():
    keys = jax.random.split(KEY, 5)

    @jax.jit
    def draw(keys):
        x = PROCESS.prior(keys, (len(keys), 2))
        return sample(oracle, PROCESS, ParallelDecoding(), time_grid(PROCESS, 2), keys, x)

    np.testing.assert_array_equal(draw(keys[3:]), draw(keys)[3:])


def test_what_tokens_cannot_do_is_refused():
    with pytest.raises(UserError, match="trailing"):
        time_grid(PROCESS, 4, "karras")
    with pytest.raises(UserError, match="temperature"):
        ParallelDecoding(-1.0)
