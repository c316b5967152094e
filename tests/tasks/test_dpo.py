"""Diffusion-DPO: the loss against a transcription in torch; a run that is resumed."""

import shutil
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.masking import MaskingProcess
from emu_jax.process.registry import SCHEDULES
from emu_jax.tasks.base import Context
from emu_jax.tasks.dpo import REFERENCE, Dpo, error

KEY, CODES, ROWS = jax.random.key(7), 5, 4
COSINE = SCHEDULES["cosine"]()


@dataclass
class Linear:
    """A generator whose output is a scaled input; rows hold clean data."""

    process: Any
    stream: str = "train"

    def with_latents(self, frozen, rows):
        return rows | self.latents(frozen, rows["image"])

    def latents(self, frozen, image):
        return {"moments": image}

    def clean(self, frozen, rows, key):
        return rows["moments"]

    def encode(self, frozen, rows):
        return rows["text"]

    def condition(self, params, encoded, sizes):
        return {"vector": encoded}

    def denoise(self, params, x, timestep, conditions):
        if isinstance(self.process, MaskingProcess):
            logits = params["a"] * jax.nn.one_hot(x, CODES + 1) @ params["table"]
            return logits + conditions["vector"][:, None, None, None]
        return params["a"] * x + conditions["vector"][:, None, None, None] + timestep[0] * 0


def case(process, beta, integers=False):
    """(task, context) of four rows."""
    random = np.random.default_rng(0)
    if integers:
        first, second = random.integers(0, CODES, (2, ROWS, 3, 3)).astype(np.int32)
    else:
        first, second = random.normal(size=(2, ROWS, 3, 3, 2)).astype(np.float32)
    rows = {
        "image": jnp.asarray(first),
        "further": {"other": jnp.asarray(second)},
        "text": jnp.asarray(random.normal(size=ROWS), jnp.float32),
        "sizes": jnp.zeros((ROWS, 6), jnp.int32),
    }
    table = jnp.asarray(random.normal(size=(CODES + 1, CODES)), jnp.float32)
    params, reference = ({"a": jnp.float32(a), "table": table} for a in (0.3, 0.7))
    task = Dpo(base=Linear(process), votes="none", beta=beta, groups={}, frozen={})
    return task, Context(params, {REFERENCE: reference}, {}, {"train": rows}, KEY)


def value_and_gradient(task, context):
    def loss(a):
        params = context.params | {"a": a}
        return task.loss("generator", context._replace(params=params)).value

    return jax.value_and_grad(loss)(context.params["a"])


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_the_loss_of_noise_equals_the_authors(prediction):
    """As their training script has it, with outputs turned into eps first."""
    process = GaussianProcess(COSINE, prediction)
    task, context = case(process, beta=20.0)
    value, gradient = value_and_gradient(task, context)
    rows = context.batch["train"]
    _, k_process = jax.random.split(KEY)
    images = (rows["image"], rows["further"]["other"])
    noisy = [process.corrupt(k_process, x) for x in images]
    np.testing.assert_array_equal(noisy[0].t, noisy[1].t)
    a = torch.tensor(0.3, requires_grad=True)
    alpha, sigma = (
        torch.tensor(np.asarray(f(noisy[0].t))).reshape(-1, 1, 1, 1)
        for f in (COSINE.alpha, COSINE.sigma)
    )
    text = torch.tensor(np.asarray(rows["text"])).reshape(-1, 1, 1, 1)
    losses = []
    for factor in (a, torch.tensor(0.7)):
        model_losses = []
        for x0, one in zip(images, noisy, strict=True):
            x0, x = (torch.tensor(np.asarray(array)) for array in (x0, one.x))
            output, noise = factor * x + text, (x - alpha * x0) / sigma
            pred = {
                "eps": lambda: output,  # noqa: B023
                "v": lambda: sigma * x + alpha * output,  # noqa: B023
                "x0": lambda: (x - alpha * output) / sigma,  # noqa: B023
                "flow": lambda: (x + alpha * output) / (alpha + sigma),  # noqa: B023
            }[prediction]()
            model_losses.append((pred - noise).pow(2).mean(dim=[1, 2, 3]))
        losses.append(model_losses)
    model_diff, ref_diff = (own[0] - own[1] for own in losses)
    expected = -logsigmoid(-0.5 * 20.0 * (model_diff - ref_diff)).mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    assert float(gradient) == pytest.approx(a.grad.item(), rel=1e-3)
    assert float(value) > 0.01 and abs(float(gradient)) > 0.01


def test_the_loss_of_tokens_is_that_of_their_likelihood():
    process = MaskingProcess(CODES)
    task, context = case(process, beta=0.5, integers=True)
    value, gradient = value_and_gradient(task, context)
    rows = context.batch["train"]
    _, k_process = jax.random.split(KEY)
    a = torch.tensor(0.3, requires_grad=True)
    table = torch.tensor(np.asarray(context.params["table"]))
    estimates = []
    for factor in (a, torch.tensor(0.7)):
        for x0 in (rows["image"], rows["further"]["other"]):
            noisy = process.corrupt(k_process, x0)
            for i in range(ROWS):
                x = torch.tensor(np.asarray(noisy.x[i], np.int64)).reshape(-1)
                truth = torch.tensor(np.asarray(x0[i], np.int64)).reshape(-1)
                logits = factor * torch.nn.functional.one_hot(x, CODES + 1).float() @ table
                masked = x == CODES
                mean = cross_entropy((logits + float(rows["text"][i]))[masked], truth[masked])
                estimates.append(9 * mean * (np.pi / 2) * np.cos(np.pi / 2 * float(noisy.t[i])))
    own, reference = torch.stack(estimates).reshape(2, 2, ROWS)
    expected = -logsigmoid(-0.5 * ((own - reference)[0] - (own - reference)[1])).mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    assert float(gradient) == pytest.approx(a.grad.item(), rel=1e-3)


def test_the_estimate_of_a_likelihood_has_the_right_mean():
    """Tokens that are independent: -log p is known, whatever the order."""
    process = MaskingProcess(CODES)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=CODES), jnp.float32)
    x0 = jnp.asarray(np.random.default_rng(1).integers(0, CODES, (1, 16, 16)), jnp.int32)
    known = -jax.nn.log_softmax(logits)[x0].sum()
    many = jnp.broadcast_to(x0, (4000, 16, 16))
    t = (jnp.arange(4000) + 0.5) / 4000
    corrupted = process.corrupt(KEY, many, t)
    found = error(process, jnp.broadcast_to(logits, (*many.shape, CODES)), corrupted)
    assert float(found.mean()) == pytest.approx(float(known), rel=0.01)


def test_votes_say_which_image_is_preferred():
    """Where more people prefer the other one the margin has the other sign; a tie has none."""
    task, context = case(GaussianProcess(COSINE, "v"), beta=20.0)
    rows = context.batch["train"]
    plain = np.asarray(task.margins(context, rows))
    votes = {"votes": [[3], [1], [2], [0]], "votes_other": [[2], [4], [2], [1]]}
    rows = rows | {"columns": {name: jnp.array(x) for name, x in votes.items()}}
    voted = replace(task, votes="majority")
    np.testing.assert_allclose(voted.margins(context, rows), plain * [1, -1, 0, -1], rtol=1e-6)
    logged = voted.loss("generator", context._replace(batch={"train": rows})).metrics
    right = (plain * [1, -1, 0, -1])[[0, 1, 3]] > 0
    assert float(logged["accuracy"]) == pytest.approx(right.mean())
    assert np.abs(plain).min() > 1e-3


def test_the_start_is_indifferent():
    """The loss of the reference itself is log 2, and a predicted variance says nothing."""
    for process, integers in ((GaussianProcess(COSINE, "v"), False), (MaskingProcess(5), True)):
        task, context = case(process, beta=20.0, integers=integers)
        context = context._replace(params=context.frozen[REFERENCE])
        found = task.loss("generator", context)
        assert float(found.value) == pytest.approx(np.log(2), rel=1e-6)
    learned = replace(GaussianProcess(COSINE, "eps"), variance="learned_range")
    x0 = jnp.ones((2, 3, 3, 2))
    corrupted = learned.corrupt(KEY, x0)
    output = jnp.concatenate([corrupted.x, 99 * corrupted.x], axis=-1)
    plain = GaussianProcess(COSINE, "eps")
    np.testing.assert_array_equal(
        error(learned, output, corrupted), error(plain, corrupted.x, corrupted)
    )


@pytest.fixture(scope="module")
def pairs(pictures, tmp_path_factory):
    """A data_dir with ``folder/pairs``: images of ``folder/tiny``, each with another one."""
    place = tmp_path_factory.mktemp("pairs")
    folder = place / "images"
    folder.mkdir()
    for i in range(8):
        for name in (f"{i:02d}.png", f"{i:02d}.txt"):
            shutil.copy(pictures / "source" / name, folder / name)
        shutil.copy(pictures / "source" / f"{i + 8:02d}.png", folder / f"{i:02d}.other.png")
    assert main(["data", "build", "folder/pairs", f"--path={folder}", f"--data_dir={place}"]) == 0
    return place


def test_a_run_resumes_and_is_a_generator(
    pairs, pictures, autoencoder_run, generator_run, tmp_path
):
    sources = ("train.openmoji", "validation.unseen.openmoji")
    given = ("dataset=folder/pairs", "select=", "captions=captions")
    arguments = [
        "train",
        f"--config={runs.ROOT}/configs/dpo.py:size=test",
        f"--config.data.data_dir={pairs}",
        f"--config.codec.path={autoencoder_run}",
        f"--config.init_from={generator_run}",
        f"--config.text.minilm.path={pictures}/text_encoder",
        "--config.dpo.votes=none",
        "--config.data.image_size=16",
        "--config.denoiser.widths=(8,)",
        *(f"--config.data.{source}.{value}" for source in sources for value in given),
    ]

    def train(name):
        assert main([*arguments, f"--workdir={tmp_path / name}"]) == 0

    train("run")
    logged = runs.lines(tmp_path / "run" / "metrics.jsonl")
    first = next(line for line in logged if "generator/loss" in line)
    assert first["generator/loss"] == pytest.approx(np.log(2), rel=1e-4)
    assert {"unseen/preference", "unseen/accuracy"} <= {key for line in logged for key in line}
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    train("resumed")
    unbroken, resumed = runs.arrays(tmp_path / "run"), runs.arrays(tmp_path / "resumed")
    assert all(np.array_equal(unbroken[path], resumed[path]) for path in unbroken)
    drawn = ["sample", "a red disc", f"--checkpoint={tmp_path / 'run'}", "--steps=1"]
    assert main([*drawn, f"--out={tmp_path / 'drawn'}"]) == 0


def test_without_a_start_there_is_no_reference(autoencoder_run):
    config = read(f"{runs.ROOT}/configs/dpo.py:size=test")
    config.codec.path, config.init_from = str(autoencoder_run), ""
    with pytest.raises(UserError, match="that is also the reference"):
        make_task(config)
