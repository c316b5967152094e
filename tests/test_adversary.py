"""Adversarial feedback by the real commands: two groups in one step, resumption, what is left."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.rewards import trained_reward
from emu_jax.assembly.tasks import make_task
from emu_jax.checkpoint.export import load_model
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.nn.functional import subtree
from emu_jax.tasks.base import Context
from emu_jax.tasks.feedback import ADVERSARY

CONFIG = f"{runs.ROOT}/configs/feedback.py:size=test,stage=adversarial"
TEACHERS = dict(adversary="detail", reward_color="color")
FEW = f"""
from emu_jax.assembly.config import read


def get_config():
    config = read("{CONFIG}")
    with config.unlocked():
        for name in ("reward_detail", "reward_layout", "reward_lighting"):
            del config.teachers[name]
    return config
"""


@pytest.fixture(scope="module")
def trained(pictures, scenes, autoencoder_run, generator_run, reward_run, tmp_path_factory):
    """(the command, its workdir after three steps), beside a frozen reward on other images."""
    folder = tmp_path_factory.mktemp("adversarial")
    workdir, config = folder / "run", folder / "few_teachers.py"
    config.write_text(FEW)
    arguments = [
        "train",
        f"--config={config}",
        f"--config.data.data_dir={scenes}",
        f"--config.codec.path={autoencoder_run}",
        f"--config.init_from={generator_run}",
        f"--config.text.minilm.path={pictures}/text_encoder",
        "--config.data.image_size=16",
        "--config.denoiser.widths=(8,)",
        "--config.train.steps=3",
        "--config.train.validate_every=0",
        "--config.train.checkpoint_every=1",
        "--config.train.preview_every=3",
        "--config.groups.discriminator.optimizer.learning_rate=1e-2",
        *(f"--config.teachers.{name}.path={reward_run}" for name in TEACHERS),
        *(f"--config.teachers.{name}.dimension={TEACHERS[name]}" for name in TEACHERS),
        *(
            f"--config.data.{part}.openmoji.dataset=scenes/openmoji_tiny"
            for part in ("train", "validation.scenes")
        ),
    ]

    assert main([*arguments, f"--workdir={workdir}"]) == 0
    return arguments, workdir


def test_both_learn_and_a_killed_run_equals_the_unbroken_one(
    trained, reward_run, nursery, tmp_path
):
    arguments, workdir = trained
    logged = {key for line in runs.lines(workdir / "metrics.jsonl") for key in line}
    assert {f"generator/{name}" for name in TEACHERS} <= logged
    assert {f"discriminator/{name}" for name in ("loss", "real", "drawn", "accuracy")} <= logged
    shown = " ".join(path.name for path in (workdir / "images").iterdir())
    assert "feedback_0" in shown and "feedback_1_0" in shown  # one of each trajectory
    broken = tmp_path / "broken"
    nursery.resume("adversary", arguments, broken)
    unbroken, resumed = runs.arrays(workdir), runs.arrays(broken)
    assert unbroken.keys() == resumed.keys()
    assert all(np.array_equal(unbroken[path], resumed[path]) for path in unbroken)
    # It started as the reward, and has moved a little.
    now = load_model(str(workdir)).params
    _, start, _ = trained_reward(str(reward_run))
    apart = [
        np.abs(now[f"{ADVERSARY}/{path}"] - x).max()
        for path, x in start.tensors()
        if not path.startswith("standard/")
    ]
    assert 0 < max(apart) < 0.1


def test_what_is_exported_is_the_generator_alone(trained, tmp_path):
    _, workdir = trained
    assert main(["export", str(workdir), f"--out={tmp_path / 'model'}"]) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())["config"]
    assert config["task"] == "generation"
    for name in (str(workdir), str(tmp_path / "model")):
        out = tmp_path / f"drawn_{len(name)}"
        assert main(["sample", f"--checkpoint={name}", "a fox", f"--out={out}", "--steps=2"]) == 0
        assert list(out.glob("*.png"))


def test_each_group_has_the_gradient_of_its_own_loss(autoencoder_run, pictures, reward_run):
    """The generator's is that of the raw score; the adversary's, of images that the updated
    generator predicts from the very place that the generator's loss had come to.
    """
    config = read(f"{CONFIG},teacher=adversary")
    config.codec.path, config.teachers.adversary.path = str(autoencoder_run), str(reward_run)
    config.teachers.adversary.dimension = "detail"
    config.data.image_size, config.denoiser.widths = 16, (8,)
    config.text.minilm.path = f"{pictures}/text_encoder"
    config.feedback.diffusion = 0.0
    task = make_task(config)
    frozen = {
        name: {path: jnp.asarray(x) for path, x in network.tensors()}
        for name, network in task.frozen.items()
    }
    task = replace(task, weights={"adversary": 1.0}).prepare(frozen)
    params, _ = task.init(jax.random.key(0))
    noise = jax.random.key(1)  # the last layer of a fresh denoiser is zero
    params = {path: x + 0.05 * jax.random.normal(noise, x.shape) for path, x in params.items()}
    tokens = task.base.encoders["minilm"].tokenize(["a fox", "two cars"])
    rows = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)),
        "sizes": jnp.tile(jnp.array([[16, 16, 0, 0, 16, 16]]), (2, 1)),
        "tokens": {"minilm": jax.tree.map(jnp.asarray, tokens)},
    }
    first = Context(params, frozen, {}, {"train": rows}, jax.random.key(5))

    def loss(group, context):
        def of(params):
            found = task.loss(group, context._replace(params=params))
            return found.value, found

        return jax.jit(jax.value_and_grad(of, has_aux=True))(context.params)

    (value, found), gradient = loss("generator", first)
    moved = {path for path, x in gradient.items() if jnp.abs(x).max() > 0}
    assert moved and not any(path.startswith(f"{ADVERSARY}/") for path in moved)
    x, last = found.handed

    updated = {p: x if p.startswith(f"{ADVERSARY}/") else x + 0.01 for p, x in params.items()}
    key = jax.random.key(6)
    second = first._replace(params=updated, key=key, handed={"generator": found.handed})
    (value, found), gradient = loss(ADVERSARY, second)
    moved = {path for path, x in gradient.items() if jnp.abs(x).max() > 0}
    assert moved and all(path.startswith(f"{ADVERSARY}/") for path in moved)

    # By hand: one call of the updated generator at the place that was handed on.
    base, (path,), (_, adversary) = task.base, task.paths, task.adversary
    whole = base.with_latents(frozen, rows)
    encoded = base.encode(frozen, whole)
    times = base.times(path.sampling)
    t = jnp.full(2, times[last])
    conditions = base.condition(updated, encoded, rows["sizes"])
    output = base.guided(updated, conditions, None, path.sampling)(x, t)
    drawn = base.decode(frozen, base.process.predict(output, x, t).x0)
    real = base.decode(frozen, base.clean(frozen, whole, jax.random.fold_in(key, 2**30 + 1)))
    given = {"encoded": {adversary.text: encoded["minilm"]}}
    scores = [
        np.asarray(adversary.score(subtree(updated, ADVERSARY), image, given), np.float64)
        for image in (real, drawn)
    ]
    expected = np.mean(np.log1p(np.exp(-scores[0])) + np.log1p(np.exp(scores[1])))
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.rank": 2}, "no part of an adapter"),
        ({"groups.discriminator": None}, "use generator and discriminator, in this order"),
        ({"teachers.second": "adversary"}, "are adversaries, and one can learn"),
        ({"teachers.adversary.trajectory.renoised": 2}, "judges single predictions"),
        ({"teachers.adversary.dimension": "taste"}, "no reward of the dimension 'taste'"),
    ],
)
def test_what_cannot_be_an_adversary_is_named(changes, said, reward_run, autoencoder_run):
    config = read(f"{CONFIG},teacher=adversary")
    config.teachers.adversary.path = str(reward_run)
    config.teachers.adversary.dimension = "detail"
    config.codec.path = str(autoencoder_run)
    with config.unlocked():
        for name, value in changes.items():
            if value == "adversary":
                config.teachers.second = config.teachers.adversary.copy_and_resolve_references()
            elif value is None:
                del config.groups["discriminator"]
            else:
                config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=said):
        make_task(config)


def test_an_adversary_starts_from_a_trained_reward(autoencoder_run):
    """A config file is enough to plan with. A run would record a path that no model may have."""
    config = read(f"{CONFIG},teacher=adversary")
    config.teachers.adversary.path = f"{runs.ROOT}/configs/reward.py:size=test"
    config.codec.path = str(autoencoder_run)
    task = make_task(config)
    with pytest.raises(UserError, match="is a config file, which is enough to plan"):
        dict(task.starts[ADVERSARY].tensors())
