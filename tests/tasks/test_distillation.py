"""The distillation losses against torch's kl_div, called as the SUR-adapter's authors call it."""

import numpy as np
import torch
from torch.nn.functional import kl_div

from emu_jax.tasks.distillation import (
    divergence,
    fixed_projections,
    llm_loss,
    over_tokens,
    prompt_loss,
)

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def torch_kl(target, given):
    """F.kl_div(log p(given), p(target)) summed over features."""
    given, target = torch.tensor(given), torch.tensor(target)
    return kl_div(given.log_softmax(-1), target.softmax(-1), reduction="none").sum(-1).numpy()


STUDENT, TEACHER = normal(2, 3, 7), normal(2, 3, 7)
MASK = np.array([[True, True, True], [True, False, False]])


def test_the_authors_call_has_the_student_first():
    """F.kl_div takes the teacher's log-probabilities and the student's probabilities."""
    np.testing.assert_allclose(
        divergence(STUDENT, TEACHER), torch_kl(target=STUDENT, given=TEACHER), rtol=1e-4, atol=1e-6
    )
    assert np.all(np.abs(divergence(STUDENT, TEACHER) - divergence(TEACHER, STUDENT)) > 1e-4)


def test_the_prompt_loss_is_the_sum_over_tokens():
    want = torch_kl(target=STUDENT, given=TEACHER)
    everything = np.ones_like(MASK)
    found = prompt_loss(STUDENT, TEACHER, everything)
    np.testing.assert_allclose(found, want.sum(1), rtol=1e-4)
    # Masked tokens are left out, of the mean too.
    found = prompt_loss(STUDENT, TEACHER, MASK)
    np.testing.assert_allclose(found, [want[0].sum(), want[1, 0]], rtol=1e-4)
    found = prompt_loss(STUDENT, TEACHER, MASK, "mean")
    np.testing.assert_allclose(found, [want[0].mean(), want[1, 0]], rtol=1e-4)
    assert np.all(over_tokens(want, np.zeros_like(MASK), "mean") == 0)


def test_the_language_models_loss_in_both_directions():
    vector, projection = normal(2, 5), {"kernel": normal(5, 7), "bias": normal(7)}
    teacher = np.repeat((vector @ projection["kernel"] + projection["bias"])[:, None], 3, axis=1)
    arguments = STUDENT, vector, projection, np.ones_like(MASK)
    want = torch_kl(target=STUDENT, given=teacher).sum(1)
    np.testing.assert_allclose(llm_loss(*arguments), want, rtol=1e-4)
    want = torch_kl(target=teacher, given=STUDENT).mean(1)
    np.testing.assert_allclose(llm_loss(*arguments, "teacher", "mean"), want, rtol=1e-4)


def test_the_projections_are_fixed_and_start_as_torchs():
    found = fixed_projections(400, {"clip": 30, "t5": 20})
    again = fixed_projections(400, {"clip": 30})
    assert {path: x.shape for path, x in found.items()} == {
        "clip/kernel": (400, 30),
        "clip/bias": (30,),
        "t5/kernel": (400, 20),
        "t5/bias": (20,),
    }
    np.testing.assert_array_equal(found["clip/kernel"], again["clip/kernel"])
    theirs = torch.nn.Linear(400, 30).weight.detach().numpy()
    for x in (found["clip/kernel"], theirs):
        assert np.abs(x).max() <= 0.05
        np.testing.assert_allclose(x.std(), 0.05 / 3**0.5, rtol=0.03)
