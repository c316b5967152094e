"""Rewards by the real commands: learned from preferences, and as teachers of a generator."""

import json
import shutil

import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.rewards import make_reward, trained_reward
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.errors import UserError
from emu_jax.evaluation.decisions import Comparison
from emu_jax.parallel.placement import ONE_DEVICE
from emu_jax.tasks.rewards import ALPHA, DEVIATION


def test_a_reward_is_trained_and_resumed_bit_for_bit(reward_run, preferences, pictures, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(reward_run, resumed)
    shutil.rmtree(resumed / "checkpoints/4")
    runs.train_reward(resumed, preferences, pictures)
    before, after = runs.arrays(reward_run), runs.arrays(resumed)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    logged = {key for line in runs.lines(reward_run / "metrics.jsonl") for key in line}
    assert {f"unseen/accuracy_{name}" for name in DIMENSIONS} | {"reward/accuracy"} <= logged
    assert list((reward_run / "images").glob("unseen_pairs*.png"))


def test_what_standardizes_a_reward_is_stored_with_it(reward_run, tmp_path):
    task, weights, _ = trained_reward(str(reward_run))
    own = dict(weights.tensors())
    assert task.outputs == DIMENSIONS
    assert own[ALPHA].shape == (4,) and np.isfinite(own[ALPHA]).all() and own[DEVIATION].all()
    _, unfinished, _ = trained_reward(f"{reward_run}@2")
    assert np.isnan(dict(unfinished.tensors())[ALPHA]).all()
    exported = tmp_path / "model"
    assert main(["export", str(reward_run), f"--out={exported}", "--dtype=keep"]) == 0
    _, moved, _ = trained_reward(str(exported))
    assert all(np.array_equal(own[path], x) for path, x in moved.tensors())


def test_accuracies_are_a_table_and_a_record(reward_run, preferences, tmp_path, capsys):
    assert main(["rewards", str(reward_run), f"--out={tmp_path}"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == f"| reward | all pairs | {' | '.join(DIMENSIONS)} |" and len(rows) == 4
    (last,) = (
        line
        for line in runs.lines(reward_run / "metrics.jsonl")
        if line["step"] == 4 and "unseen/accuracy" in line
    )
    for i, (name, row) in enumerate(zip(DIMENSIONS, rows, strict=True)):
        cells = row.strip("| ").split(" | ")
        assert cells[0] == f"{reward_run}, {name}"
        assert cells[2 + i].startswith(f"{last[f'unseen/accuracy_{name}']:.1%} (")
    found = Comparison([json.loads((tmp_path / "rewards.json").read_text())])
    for name in DIMENSIONS:
        right = found.values([f"{reward_run}, {name}"], "right", name)
        assert right.mean() == pytest.approx(last[f"unseen/accuracy_{name}"])
    assert [head, *rows] == [
        line for line in (tmp_path / "figures.md").read_text().splitlines() if "---" not in line
    ]


def test_rewards_teach_a_generator(
    reward_run, scenes, pictures, autoencoder_run, generator_run, tmp_path
):
    workdir, diffusion = tmp_path / "run", 0.5
    config = f"{runs.ROOT}/configs/feedback.py:size=test,stage=aesthetic,teacher=color"
    arguments = [
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={scenes}",
        f"--config.codec.path={autoencoder_run}",
        f"--config.init_from={generator_run}",
        f"--config.text.minilm.path={pictures}/text_encoder",
        f"--config.teachers.reward_color.path={reward_run}",
        "--config.teachers.reward_color.dimension=color",
        "--config.teachers.reward_color.alpha=50.0",
        f"--config.feedback.diffusion={diffusion}",
        "--config.data.image_size=16",
        "--config.denoiser.widths=(8,)",
        "--config.train.steps=1",
        "--config.train.validate_every=0",
        *(
            f"--config.data.{part}.openmoji.dataset=scenes/openmoji_tiny"
            for part in ("train", "validation.scenes")
        ),
    ]
    assert main(arguments) == 0
    (line,) = runs.lines(workdir / "metrics.jsonl")
    assert line["generator/reward_color"] > 1 and line["generator/grad_norm"] > 0
    weight = read(config).teachers.reward_color.weight
    total = weight * line["generator/reward_color"] + diffusion * line["generator/diffusion"]
    assert line["generator/loss"] == pytest.approx(total, rel=1e-5)


def test_teachers_share_a_text_encoder(reward_run, pictures, autoencoder_run):
    config = read(f"{runs.ROOT}/configs/feedback.py:size=test,stage=aesthetic")
    config.codec.path = str(autoencoder_run)
    for name in DIMENSIONS:
        config.teachers[f"reward_{name}"].update(dict(path=str(reward_run), dimension=name))
    for length, texts in ((50, {"minilm"}), (16, {"minilm", "reward_color_text"})):
        config.text.minilm.update(dict(path=f"{pictures}/text_encoder", length=length))
        task = make_task(config)
        assert set(task.streams["train"].encoders) == texts
        assert set(task.frozen) == {"codec", *texts, *config.teachers}
        assert {teacher.text for teacher in task.teachers.values()} == {sorted(texts)[-1]}
        assert [teacher.output for teacher in task.teachers.values()] == [0, 3, 1, 2]


def test_what_is_no_reward_is_named(reward_run, generator_run):
    def reward(path, dimension="color", alpha=None):
        return make_reward(ONE_DEVICE, path=str(path), model="", dimension=dimension, alpha=alpha)

    for path, dimension, said in (
        (generator_run, "color", "is not a reward: its task is 'generation'"),
        (reward_run, "", "set dimension to one of color, layout"),
        (reward_run, "taste", "no reward of the dimension 'taste'"),
        (f"{reward_run}@2", "color", "has no alpha"),
    ):
        with pytest.raises(UserError, match=said):
            reward(path, dimension)
    assert reward(f"{reward_run}@2", alpha=1.0)[0].alpha == 1.0


def test_the_published_size_is_planned_with_a_config():
    task = make_task(read(f"{runs.ROOT}/configs/feedback.py:size=sd15,stage=aesthetic"))
    assert task.frozen["reward"].shapes["mlp/layers/7/kernel"].shape == (16, 1)
    assert task.paths[0].start is None and task.encoders["reward_text"].length == 35
    config = read(f"{runs.ROOT}/configs/reward.py:size=blip")
    (group,) = make_task(config).groups.values()
    shapes = task.frozen["reward"].shapes
    trained = {"/".join(path.split("/")[:4]) for path in group.paths(shapes)}
    assert {f"text_encoder/encoder/layer/{i}" for i in range(8, 12)} <= trained
    assert not any(path.startswith("text_encoder/encoder/layer/7") for path in trained)
    assert not any(path.startswith("text_encoder/embeddings") for path in trained)
    blocks = {path.split("/")[2] for path in trained if path.startswith("visual_encoder/blocks")}
    assert blocks == {str(i) for i in range(16, 24)}
