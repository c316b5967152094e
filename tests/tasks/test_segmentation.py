"""The segmentation task: trained by the real command on scenes; labels; what validation counts."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.nn.solo import Level
from emu_jax.tasks.base import Context
from emu_jax.tasks.segmentation import paint
from emu_jax.tasks.solo import Instances, assign, decode


@pytest.fixture(scope="module")
def scenes(shared):
    build = ["data", "build", "scenes/openmoji_tiny"]
    return shared("scenes", lambda folder: main([*build, f"--data_dir={folder}"]))


@pytest.fixture(scope="module")
def task():
    return make_task(read(f"{runs.ROOT}/configs/parser.py:size=test"))


def test_training_resumes_bit_for_bit(scenes, tmp_path):
    def train(name):
        return main(
            [
                "train",
                f"--config={runs.ROOT}/configs/parser.py:size=test",
                f"--workdir={tmp_path / name}",
                f"--config.data.data_dir={scenes}",
                "--config.train.preview_every=4",
                *(
                    f"--config.data.{part}.{style}.dataset=scenes/openmoji_tiny"
                    for part in ("train", "validation.unseen")
                    for style in ("openmoji", "fluent")
                ),
            ]
        )

    assert train("unbroken") == 0
    shutil.copytree(tmp_path / "unbroken", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")
    assert train("resumed") == 0
    unbroken, resumed = (runs.arrays(tmp_path / name) for name in ("unbroken", "resumed"))
    assert all(np.array_equal(unbroken[path], resumed[path]) for path in unbroken)
    logged = {key for line in runs.lines(tmp_path / "unbroken/metrics.jsonl") for key in line}
    assert {"parser/classes", "parser/masks", "unseen/loss", "unseen/things"} <= logged
    assert list((tmp_path / "unbroken/images").glob("unseen_instances*.png"))


def test_validation_counts_instances_and_their_classes(task, monkeypatch):
    """Of four images one is right, one has a wrong class, one an instance too many, one is padding;
    the network's output is put in its place.
    """
    image = np.zeros((64, 64), np.uint8)
    image[4:24, 4:24], image[36:60, 30:58] = 1, 2
    truth = [[3, 5], [3, 6], [3, -1], [3, 5]]
    seen = Instances(jnp.asarray([image]), jnp.asarray([[3, 5]]))
    cells = np.asarray(assign(seen, 8, (0.0, 1e9))[0])
    classes = np.full((8, 8, 60), -20.0)
    masks = np.full((64, 64, 64), -20.0)
    for i, j in np.argwhere(cells >= 0):
        classes[i, j, [3, 5][cells[i, j]]] = 20
        masks[image == cells[i, j] + 1, i * 8 + j] = 20
    level = Level(jnp.asarray([classes] * 4), jnp.asarray([masks] * 4))
    monkeypatch.setattr(type(task), "levels", lambda *_: [level])
    rows = {
        "image": np.zeros((4, 64, 64, 3), np.uint8),
        "further": {"instances": np.stack([image] * 4)},
        "columns": {"things": np.array([[*row, -1, -1, -1, -1] for row in truth])},
        "valid": np.array([True, True, True, False]),
    }
    found = task.validate(Context({}, {}, {}, {"train": rows}, jax.random.key(0)))
    assert [float(x) for x in found["count"]] == [2, 3]
    assert [float(x) for x in found["things"]] == [1, 3]
    painted = np.asarray(paint(jnp.asarray(rows["image"]), decode([level])))[0]
    colors = [set(map(tuple, painted[image == i])) for i in range(3)]
    assert [len(color) for color in colors] == [1, 1, 1] and len(set.union(*colors)) == 3


def test_a_round_trip_needs_a_codec():
    config = ConfigDict(read(f"{runs.ROOT}/configs/parser.py:size=test").to_dict())
    config.labeled.round_trip = 0.5
    config.labeled.classes = tuple(config.labeled.classes)
    with pytest.raises(UserError, match=r"needs a codec: set codec\.path"):
        make_task(config)
