"""Which changes of a config a resumed run accepts."""

import copy

import pytest

from emu_jax.errors import UserError
from emu_jax.training.resuming import require_same_config

CONFIG = {
    "train": {"steps": 10, "batch_size": 8, "stop": {"metric": ""}},
    "process": {"prediction": "v"},
    "denoiser": {"widths": (8, 16)},
    "text": {"minilm": {"path": "a", "length": 16}},
    "mesh": {"fsdp": 1},
}


def changed(key, value):
    config = copy.deepcopy(CONFIG)
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part]
    section[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 20),
        ("train.stop.metric", "kept/loss"),
        ("text.minilm.path", "b"),
        ("mesh.fsdp", 2),
        ("denoiser.widths", [8, 16]),  # as a checkpoint's JSON has a tuple
        ("denoiser.new_key", 1),
    ],
)
def test_a_change_of_the_list_is_accepted(key, value):
    require_same_config(CONFIG, changed(key, value), "runs/a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.batch_size", 4),
        ("process.prediction", "eps"),
        ("denoiser.widths", (8, 32)),
        ("text.minilm.length", 8),
    ],
)
def test_any_other_change_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"config\.{key} is .* in runs/a was begun with"):
        require_same_config(CONFIG, changed(key, value), "runs/a")
