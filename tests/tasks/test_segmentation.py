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
from emu_jax.errors import UserError
from emu_jax.nn.solo import Level
from emu_jax.tasks.base import Context
from emu_jax.tasks.segmentation import paint
from emu_jax.tasks.solo import Instances, assign, decode


@pytest.fixture(scope="module")
def task():
    return make_task(read(f"{runs.ROOT}/configs/parser.py:size=test"))


def test_training_resumes_bit_for_bit(parser_run, scenes, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(parser_run, resumed)
    shutil.rmtree(resumed / "checkpoints/4")
    runs.train_parser(resumed, scenes)
    before, after = runs.arrays(parser_run), runs.arrays(resumed)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    logged = {key for line in runs.lines(parser_run / "metrics.jsonl") for key in line}
    assert {"parser/classes", "parser/masks", "unseen/loss", "unseen/things"} <= logged
    assert list((parser_run / "images").glob("unseen_instances*.png"))


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
