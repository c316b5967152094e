"""Schedules against closed forms; AdamW and its clipping against torch; decay where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.training.optimizers import make_optimizer, make_schedule

RATE, WARMUP, STEPS, FINAL = 2e-3, 10, 110, 0.1
# body(n): the rate n updates after the warm-up, of the 100 that follow it.
BODIES = {
    "constant": lambda n: RATE,
    "cosine": lambda n: RATE * (FINAL + (1 - FINAL) * (1 + np.cos(np.pi * n / 100)) / 2),
    "linear": lambda n: RATE * (1 - (1 - FINAL) * n / 100),
    "rsqrt": lambda n: RATE * np.sqrt(WARMUP / (n + WARMUP)),
}
CONFIG = {
    "name": "adamw",
    "learning_rate": 1e-2,
    "schedule": "constant",
    "warmup": 0,
    "final": 0.0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip": 0.0,
}


@pytest.mark.parametrize("name", BODIES)
def test_schedule_is_its_closed_form(name):
    schedule = make_schedule(name, RATE, steps=STEPS, warmup=WARMUP, final=FINAL)
    for n in (0, 1, 5, WARMUP - 1):
        np.testing.assert_allclose(schedule(n), RATE * (n + 1) / WARMUP, rtol=1e-5)
    for n in (0, 25, 50, 99, 100):
        np.testing.assert_allclose(schedule(WARMUP + n), BODIES[name](n), rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1])
def test_schedule_without_a_ramp_starts_at_the_rate(warmup):
    schedule = make_schedule("linear", RATE, steps=10 + warmup, warmup=warmup)
    for n in range(warmup):
        np.testing.assert_allclose(schedule(n), RATE, rtol=1e-6)
    for n in range(11):
        np.testing.assert_allclose(schedule(warmup + n), RATE * (1 - n / 10), rtol=1e-5, atol=1e-9)


def params_and_gradients():
    """A matrix and a bias, and three steps' gradients of them."""
    draw = np.random.default_rng(0).normal
    params = {"kernel": draw(size=(4, 3)), "bias": draw(size=3)}
    gradients = [{k: draw(size=v.shape) * 10**i for k, v in params.items()} for i in range(3)]
    return jax.tree.map(np.float32, (params, gradients))


def updated(params, gradients, **changes):
    """The parameters after one update a gradient."""
    optimizer, _ = make_optimizer({**CONFIG, **changes}, steps=10)

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for grads in gradients:
        params, state = update(params, state, grads)
    return params


@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_adamw_is_torchs_and_decays_matrices_alone(clip):
    params, gradients = params_and_gradients()
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    decay = {"kernel": CONFIG["weight_decay"], "bias": 0.0}
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay[name]} for name, p in theirs.items()],
        lr=CONFIG["learning_rate"],
        betas=(CONFIG["b1"], CONFIG["b2"]),
        eps=CONFIG["eps"],
    )
    for grads in gradients:
        for name, p in theirs.items():
            p.grad = torch.tensor(grads[name])
        if clip:
            # Their 1e-6 in the divisor is below this test's tolerance.
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip)
        optimizer.step()
    ours = updated(params, gradients, clip=clip)
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name], p.detach().numpy(), atol=1e-6)
    other = updated(params, gradients, clip=0.0 if clip else 2.0)
    assert not np.allclose(ours["bias"], other["bias"], atol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_decay_is_the_rate_times_the_weight_and_leaves_biases_alone(name):
    """With no gradient an update is the decay and nothing else; a stack's layers are no rows."""
    params, _ = params_and_gradients()
    params |= {f"blocks_scan/{path}": np.stack([value] * 2) for path, value in params.items()}
    zero = [jax.tree.map(np.zeros_like, params)]
    for rate in (1e-2, 1e-3):
        moved = updated(params, zero, name=name, b1=0.0, learning_rate=rate)
        for stack in ("", "blocks_scan/"):
            kernel, bias = f"{stack}kernel", f"{stack}bias"
            expected = params[kernel] * (1 - rate * CONFIG["weight_decay"])
            np.testing.assert_allclose(moved[kernel], expected, rtol=1e-6)
            assert np.array_equal(moved[bias], params[bias])


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_axis_of_layers_makes_no_matrix_of_a_stacks_biases(name):
    shapes = {"a/blocks_scan/kernel": (2, 3, 4), "a/blocks_scan/bias": (2, 4), "a/kernel": (3, 4)}
    params = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    zero = [jax.tree.map(np.zeros_like, params)]
    moved = updated(params, zero, name=name, b1=0.0)
    assert {path for path, value in moved.items() if np.all(value < 1)} == {
        "a/blocks_scan/kernel",
        "a/kernel",
    }
    assert np.all(moved["a/blocks_scan/bias"] == 1)


def test_adafactors_first_update_is_the_sign_of_the_gradient():
    """Nothing this small is factored: g / sqrt(g^2), whose RMS of one is not clipped."""
    params, gradients = params_and_gradients()
    moved = updated(params, gradients[:1], name="adafactor", b1=0.0, weight_decay=0.0)
    for path, value in params.items():
        step = CONFIG["learning_rate"] * np.sign(gradients[0][path])
        np.testing.assert_allclose(moved[path], value - step, atol=1e-6)


def test_clip_bounds_the_norm_of_all_gradients_together():
    """Adam's first moment shows what passed the clip: the gradient, scaled to the bound."""
    optimizer, _ = make_optimizer({**CONFIG, "clip": 0.5}, steps=10)
    params, gradients = params_and_gradients()
    state = optimizer.init(params)
    _, state = optimizer.update(gradients[2], state, params)
    (first,) = (s.mu for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients[2].values()))
    assert norm > 0.5
    for path, value in first.items():
        expected = (1 - CONFIG["b1"]) * gradients[2][path] * 0.5 / norm
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def _is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'cosin'.*constant, cosine, linear, rsqrt"):
        make_schedule("cosin", RATE, steps=STEPS)
    with pytest.raises(UserError, match=r"'sgd'.*adamw, adafactor"):
        make_optimizer({**CONFIG, "name": "sgd"}, steps=10)
