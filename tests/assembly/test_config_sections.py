"""Sections of configs: their checks, groups, streams, and configs as stored in models."""

import copy
import functools
import itertools
import json
import math

import pytest
import runs

from emu_jax.assembly.config import leaves, load, read, source
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.data import Stream
from emu_jax.assembly.sections.runs import Autoencoding, Generation, check, complete
from emu_jax.assembly.sections.training import Optimizer, Train
from emu_jax.errors import UserError

TEST = f"{runs.ROOT}/configs/latent_diffusion.py:size=test"
# Every kind of section is in one of them.
EXAMPLES = (
    "autoencoder.py:size=test,kind=vq",
    "judge.py:size=test",
    "latent_diffusion.py:size=test",
    "latent_diffusion.py:size=sd3",
    "masked.py:size=test,part=super",
    "masked.py:size=amused256",
    "pixel_diffusion.py:size=test,part=super",
)


# Values of any kind -------------------------------------------------------------------------------

MUTATIONS = (
    *(0, -1, 10**30, -(10**5000), 1.5, math.nan, math.inf, True, None),
    *("", "nonsense", "(((", (), (0,), (1, 2, 3), [8, 12], {}, {"a": 1}, {1: 2}, b"x"),
)


def test_a_value_of_any_kind_is_accepted_or_refused_in_one_sentence():
    """Every key of every kind of section with every mutation; no error but UserError."""
    tried, refused = set(), set()
    for example in EXAMPLES:
        config = read(f"{runs.ROOT}/configs/{example}")
        stored, kind = config.to_dict(), config.get("denoiser", {}).get("kind")
        named = {(kind, name) if name.startswith("denoiser") else name for name in leaves(config)}
        for entry, value in itertools.product(named - tried, MUTATIONS):
            name = entry[1] if isinstance(entry, tuple) else entry
            mutated = copy.deepcopy(stored)
            *parents, last = name.split(".")
            functools.reduce(dict.__getitem__, parents, mutated)[last] = value
            complete(mutated)
            try:
                check(mutated)
            except UserError as error:
                refused.add(entry)
                assert "\n" not in str(error) and "config" in str(error), (name, value)
        tried |= named
    # All refuse something, strings of any content numbers.
    assert refused == tried and len(tried) > 200


# Sections ---------------------------------------------------------------------------------------


def test_a_section_has_its_defaults_and_no_other_keys():
    assert section(Optimizer, learning_rate=3).learning_rate == 3.0
    assert section(Optimizer).schedule == "constant"
    with pytest.raises(UserError, match="Optimizer has no key learning_rat; did you mean learning"):
        section(Optimizer, learning_rat=1e-3)
    with pytest.raises(UserError, match="Train has no key patience"):
        section(Train, patience=3)
    run = section(Autoencoding)
    run.data.train.mine = source("folder/mine")  # entries are named freely
    assert run.data.train.mine.weight == 1.0


def test_leaves_name_sections_and_values():
    names = leaves(section(Generation))
    assert {"train", "train.steps", "data.cache_dir", "mesh.fsdp"} <= set(names)


def test_groups_keep_their_order(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from emu_jax.assembly.config import group, groups, read\n"
        "def get_config():\n"
        f"    config = read({TEST!r})\n"
        "    config.groups = groups(second=group('a/'), first=group('b/', every=2, phase=1))\n"
        "    return config\n"
    )
    flags = [f"--config={file}", "--workdir=runs/x", "--config.groups.first.every=3"]
    config = load(flags, "emu-jax train")[0]
    assert (config.groups.first.every, config.groups.first.phase) == (3, 1)
    stored = json.loads(json.dumps(config.to_dict()))  # as in a checkpoint
    for again in (config, copy.deepcopy(config), complete(stored), check(stored), check(config)):
        assert list(again.groups) == ["second", "first"]
    assert list(stored["groups"]) == ["second", "first"]


def test_streams_take_what_they_leave_open_from_the_data():
    config = read(TEST)
    with config.unlocked():
        config.data.streams.photos = section(
            Stream, sources=dict(mine=source("folder/mine")), batch_size=4, flip=True
        )
        config.data.validation.both = dict(
            train=dict(openmoji=source("emoji/openmoji")),
            photos=dict(mine=source("folder/mine", weight=2.0)),
        )
    run = check(config)
    streams = run.streams()
    assert list(streams) == ["train", "photos"]
    assert (streams["train"].batch_size, streams["train"].image_size) == (8, 64)
    assert (streams["train"].flip, streams["train"].random_crop) == (False, False)
    assert (streams["photos"].batch_size, streams["photos"].image_size) == (4, 64)
    assert (streams["photos"].flip, streams["photos"].random_crop) == (True, False)
    assert streams["photos"].sources["mine"].dataset == "folder/mine"
    sets = run.validation()
    assert {name: set(streams) for name, streams in sets.items()} == {
        "kept": {"train"},
        "held_out": {"train"},
        "both": {"train", "photos"},
    }
    assert sets["both"]["photos"]["mine"].weight == 2.0
    assert check(json.loads(json.dumps(config.to_dict()))) == run
    assert complete(config).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda data: data.validation.update(dict(kept=dict(fotos=dict(a=source("folder/a"))))),
            "config.data.validation.kept.fotos: use the name of a stream: train, photos.",
        ),
        (
            lambda data: data.streams.photos.update(dict(batch_size=5)),
            "config.data.streams.photos.batch_size is 5; use a multiple of train.accumulate.",
        ),
        (
            lambda data: data.streams.update(dict(train=data.streams.photos)),
            "config.data.streams: use a name other than train, which is data.train.",
        ),
    ],
)
def test_streams_that_do_not_fit_are_one_sentence(change, sentence):
    config = read(TEST)
    with config.unlocked():
        config.train.accumulate = 2
        config.data.validation = dict()
        config.data.streams.photos = section(Stream, sources=dict(mine=source("folder/mine")))
        change(config.data)
    with pytest.raises(UserError) as refused:
        check(config)
    assert str(refused.value) == sentence


# Stored configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted((runs.ROOT / "emu_jax/weights").glob("*/config.json")))
def test_stored_configs_of_shipped_weights_are_completed(model):
    stored = json.loads(model.read_text())["config"]
    whole = complete(stored)
    if stored.get("denoiser", {}).get("remat") is False:  # as older transformers had it
        assert whole.denoiser.remat == "none"
        del stored["denoiser"]["remat"]
    assert_within(stored, whole.to_dict())
    assert whole.train.preview_prompts == () and whole.data.streams.to_dict() == {}
    assert check(whole) == check(stored)
    assert complete(whole).to_dict() == whole.to_dict()


def assert_within(stored, whole):
    for key, value in stored.items():
        if isinstance(value, dict):
            assert_within(value, whole[key])
        else:
            assert (list(whole[key]) if isinstance(whole[key], tuple) else whole[key]) == value


def test_a_stored_config_of_another_version_is_completed_unchecked():
    stored = dict(task="generation", train=dict(steps=-3, moon=1), denoiser=dict(kind="new", a=1))
    whole = complete(stored)
    assert whole.train.moon == 1 and whole.train.steps == -3 and whole.train.batch_size == 64
    assert whole.denoiser.to_dict() == dict(kind="new", a=1)
    part = dict(task="denoiser", denoiser=dict(kind="unet", widths=[8, 16]))  # of an import
    assert complete(part).to_dict() == part
    with pytest.raises(UserError, match=r"config\.task is 'denoiser'; use generation, autoenc"):
        check(part)
