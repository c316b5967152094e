"""Perceptual feedback learning by the real commands: the steps, resumption, what draws."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.feedback import require_one_numbering
from emu_jax.assembly.sections.runs import check
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.data.coco_classes import CLASSES
from emu_jax.data.mixture import Vocabulary
from emu_jax.errors import UserError
from emu_jax.process.sampling import advance, start, time_grid
from emu_jax.tasks.base import Context

CONFIG = f"{runs.ROOT}/configs/feedback.py:size=test,teacher=both"


@pytest.fixture(scope="module")
def trained(
    pictures, scenes, autoencoder_run, generator_run, parser_run, deeplab_run, tmp_path_factory
):
    """(the command, its workdir after four steps)"""
    workdir = tmp_path_factory.mktemp("feedback") / "run"
    arguments = [
        "train",
        f"--config={runs.ROOT}/configs/feedback.py:size=test,teacher=all",
        f"--config.data.data_dir={scenes}",
        f"--config.codec.path={autoencoder_run}",
        f"--config.init_from={generator_run}",
        f"--config.teachers.structure.path={parser_run}",
        f"--config.teachers.layout.path={deeplab_run}",
        f"--config.text.minilm.path={pictures}/text_encoder",
        "--config.data.image_size=16",
        "--config.denoiser.widths=(8,)",
        "--config.train.steps=4",
        "--config.train.checkpoint_every=1",
        "--config.train.validate_every=2",
        "--config.train.preview_every=4",
        *(
            f"--config.data.{part}.openmoji.dataset=scenes/openmoji_tiny"
            for part in ("train", "validation.scenes")
        ),
    ]

    assert main([*arguments, f"--workdir={workdir}"]) == 0
    return arguments, workdir


def test_every_term_is_logged_and_a_killed_run_equals_the_unbroken_one(trained, nursery, tmp_path):
    arguments, workdir = trained
    logged = runs.lines(workdir / "metrics.jsonl")
    terms = {f"generator/{name}" for name in ("structure", "layout", "style", "diffusion")}
    assert terms <= {key for line in logged for key in line}
    for line in (line for line in logged if "generator/loss" in line):
        assert line["generator/loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-5)
    assert list(workdir.rglob("*feedback*.png"))
    broken = tmp_path / "broken"
    nursery.resume("feedback", arguments, broken)
    unbroken, resumed = runs.arrays(workdir), runs.arrays(broken)
    assert unbroken.keys() == resumed.keys()
    assert all(np.array_equal(unbroken[path], resumed[path]) for path in unbroken)


def test_what_has_learned_is_a_generator_like_any_other(trained, tmp_path):
    _, workdir = trained
    assert main(["export", str(workdir), f"--out={tmp_path / 'model'}"]) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())["config"]
    assert config["task"] == "generation" and not {"feedback", "teachers"} & config.keys()
    for name in (str(workdir), str(tmp_path / "model")):
        out = tmp_path / f"drawn_{len(name)}"
        drawn = ["sample", name, "a fox", f"--out={out}", "--steps=2"]
        assert main([drawn[0], f"--checkpoint={name}", *drawn[2:]]) == 0
        assert list(out.glob("*.png"))


class Brightness:
    """A teacher whose gradient is plain: images should be white."""

    originals, further, columns = False, (), {}

    def loss(self, frozen, image, rows):
        return jnp.mean((1 - image) ** 2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"start": "noise", "through": (2, 2)}, {"renoised": 2}],
    ids=["one call", "two calls", "renoised"],
)
def test_the_gradient_is_that_of_the_last_calls(changes, autoencoder_run, pictures):
    """Equal to the trajectory computed by hand, guided, from noise and from an image."""
    config = read(CONFIG)
    config.codec.path = str(autoencoder_run)
    config.data.image_size, config.denoiser.widths = 16, (8,)
    config.text.minilm.path = f"{pictures}/text_encoder"
    with config.unlocked():
        del config.teachers.structure
    config.feedback.sampling.guidance_scale = 2.0
    config.feedback.diffusion = 0.0
    config.feedback.update(changes)
    task = make_task(config)
    frozen = {
        name: {path: jnp.asarray(x) for path, x in network.tensors()}
        for name, network in task.frozen.items()
    }
    task = replace(task, teachers={"style": Brightness()}, weights={"style": 3.0}).prepare(frozen)
    params, _ = task.init(jax.random.key(0))
    # The last layer of a fresh denoiser is zero, and with it most gradients.
    noise = jax.random.key(1)
    params = {path: x + 0.05 * jax.random.normal(noise, x.shape) for path, x in params.items()}
    tokens = task.base.encoders["minilm"].tokenize(["a fox", "two cars"])
    rows = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)),
        "sizes": jnp.tile(jnp.array([[16, 16, 0, 0, 16, 16]]), (2, 1)),
        "tokens": {"minilm": jax.tree.map(jnp.asarray, tokens)},
    }
    key = jax.random.key(5)
    context = Context(params, frozen, {}, {"train": rows}, key)

    def loss(params):
        return task.loss("generator", context._replace(params=params)).value

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)

    base, (path,) = task.base, task.paths
    keys = jax.random.split(jax.random.fold_in(key, 2**30), 6)
    times = time_grid(base.process, path.sampling.steps, path.sampling.spacing)
    last = path.sampling.steps - int(
        jax.random.randint(keys[2], (), path.latest, path.earliest + 1)
    )
    whole, first = base.with_latents(frozen, rows), 0
    clean = base.clean(frozen, whole, keys[0])
    if path.start is None:
        x = base.process.prior(keys[1], clean.shape)
    else:
        snr = base.process.schedule.log_snr(times[:-1])
        first = min(int(np.argmin(np.abs(np.asarray(snr) + 0.96))), last)
        x = base.process.sample_forward(keys[1], clean, times[first])
    encoded, null = base.encode(frozen, whole), base.null_rows(2)

    def denoise(params):
        conditions = [base.condition(params, one, rows["sizes"]) for one in (encoded, null)]
        return base.guided(params, *conditions, path.sampling)

    def steps(params, state, first, last):
        if last == first:
            return state
        return advance(
            denoise(params), base.process, path.sampling.sampler, times, keys[3], state,
            jnp.arange(first, last),
        )  # fmt: skip

    def predicted(params, x):
        t = jnp.full(2, times[last])
        return base.process.predict(denoise(params)(x, t), x, t).x0

    def by_hand(params):
        begin = last - (path.through[1] - 1)
        state = steps(params, jax.lax.stop_gradient(early), begin, last)
        x0 = [predicted(params, state.x)]
        if path.renoised:
            noised = base.process.sample_forward(keys[5], jnp.concatenate(x0 * 2), times[last])
            x0 = [predicted(params, jax.lax.stop_gradient(part)) for part in jnp.split(noised, 2)]
        images = [base.decode(frozen, one) for one in x0]
        return 3 * sum(jnp.mean((1 - image) ** 2) for image in images) / len(images)

    early = steps(params, start(path.sampling.sampler, x), first, last - (path.through[1] - 1))
    expected, wanted = jax.jit(jax.value_and_grad(by_hand))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in wanted.values())
    assert scale > 1e-4
    for name in wanted:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-3, atol=1e-4 * scale)


def test_teachers_that_number_classes_differently_are_refused():
    one, other = (
        SimpleNamespace(columns={"things": Vocabulary(words, 6)}) for words in (("a", "b"), ("b",))
    )
    require_one_numbering({"structure": one, "layout": one, "style": SimpleNamespace(columns={})})
    with pytest.raises(UserError, match="number the words of the column things differently"):
        require_one_numbering({"structure": one, "layout": other})


def test_the_published_size_has_a_published_teacher():
    """Shapes alone, which is enough to plan with: SOLO of COCO's 80 classes, and VGG-16."""
    task = make_task(read(f"{runs.ROOT}/configs/feedback.py:size=sd15,teacher=both"))
    shapes = task.frozen["structure"].shapes
    assert shapes["class_head/bias"].shape == (len(CLASSES),) == (80,)
    assert task.streams["train"].further == ("instances",)
    with pytest.raises(UserError, match="is a config file, which is enough to plan a step"):
        next(task.frozen["structure"].tensors())


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        ("masked", {}, "needs a Gaussian process"),
        ("latent_diffusion", {"teachers.style.kind": "stile"}, "did you mean style"),
        ("latent_diffusion", {"feedback.earliest": 9}, "from latest"),
        ("latent_diffusion", {"teachers.style.blocks": (1.0, 1.0)}, "5 weights"),
    ],
)
def test_what_cannot_teach_is_named(base, changes, said, autoencoder_run):
    config = read(CONFIG)
    if base == "masked":
        other = read(f"{runs.ROOT}/configs/masked.py:size=test")
        for part in ("process", "denoiser", "codec", "sampling"):
            config[part] = other[part]
        config.codec.path = f"{runs.ROOT}/configs/autoencoder.py:size=test,kind=vq"
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        check(config)
        make_task(config)
