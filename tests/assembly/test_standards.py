"""What models are compared on by default: emoji, or the held-out images of the user's data set."""

from types import SimpleNamespace

import pytest

from emu_jax.assembly import standards as module
from emu_jax.assembly.judge import SHIPPED
from emu_jax.assembly.standards import standards
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.evaluation.references import Sets

OWN = {
    "data_dir": "/data",
    "train": {"pictures": {"dataset": "folder/mine", "select": "part != held_out"}},
    "validation": {
        "held_out": {"pictures": {"dataset": "folder/mine", "select": "part == held_out"}}
    },
}
MODELS = {
    "emoji": {"data_dir": "/emoji", "train": {"needles": {"dataset": "emoji/fluent"}}},
    "drawn": {"train": {"openmoji": {"dataset": "faulty/openmoji"}}},
    "own": OWN,
    "exported": {name: value for name, value in OWN.items() if name != "data_dir"},
    "unvalidated": {"train": {"all": {"dataset": "folder/all"}}, "validation": {}},
    "imported": {},
}
NONE = dict.fromkeys(("data_dir", "captions", "needles", "haystack", "kept"))


@pytest.fixture(autouse=True)
def _stored(monkeypatch):
    def open_model(name):
        return SimpleNamespace(config={"data": MODELS[name]})

    monkeypatch.setattr(module, "open_model", open_model)
    monkeypatch.setattr(module, "find", lambda name, data_dir: data_dir == "/data" or None)


def test_emoji_models_are_compared_on_emoji():
    assert standards(["emoji", "drawn", "imported"], NONE) == (Sets(DEFAULT_DATA_DIR), SHIPPED)
    sets, judge = standards(["emoji"], NONE, judge="")
    assert (sets.captions, sets.kept, judge) == ("", "", "")


@pytest.mark.parametrize("models", [["own"], ["emoji", "own"], ["own", "exported"], ["emoji+own"]])
def test_a_model_of_one_s_own_images_decides(models):
    sets, judge = standards(models, NONE)
    held_out = "folder/mine:part == held_out"
    assert (sets.data_dir, sets.captions, sets.kept, judge) == ("/data", held_out, held_out, "")
    assert sets.needles == "folder/mine:part != held_out"


def test_what_the_user_names_counts():
    sets, judge = standards(
        ["own"], NONE | {"kept": "folder/other", "data_dir": "/x"}, "runs/judge"
    )
    assert (sets.kept, sets.data_dir, judge) == ("folder/other", "/x", "runs/judge")
    assert sets.captions == "folder/mine:part == held_out"


def test_prompts_are_enough_where_the_data_set_is_not():
    assert standards(["exported"], NONE, prompts=["a fox"])[0].kept == ""
    assert standards(["exported"], NONE)[0].kept == "folder/mine:part == held_out"
    assert standards(["unvalidated"], NONE)[0].captions == "folder/all"
