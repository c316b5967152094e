"""Pixel diffusion's two parts, trained by the real command, put together and used apart."""

import math

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from emu_jax.assembly.cascade import Cascade, open_generator
from emu_jax.assembly.config import read
from emu_jax.assembly.contestants import training_curves
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.evaluation.comparison import Drawn

HASTY = ("--config.train.steps=4", "--config.groups.generator.optimizer.learning_rate=0.1")
PROMPTS = ["a red disc", "blue ball", "a green disc"]


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory):
    """Draws 8 x 8 pictures, by so high a rate that they differ after a few steps."""
    workdir = tmp_path_factory.mktemp("base")
    more = ("--config.data.image_size=8", "--config.sampling.steps=3", *HASTY)
    runs.train("pixel_diffusion:part=base", workdir, pictures, *more)
    return workdir


@pytest.fixture(scope="module")
def super_resolution(pictures, tmp_path_factory):
    """Makes 16 x 16 pictures of them; its previews are drawn while it trains."""
    workdir = tmp_path_factory.mktemp("super")
    more = ("--config.train.preview_every=2", *HASTY)
    runs.train("pixel_diffusion:part=super", workdir, pictures, *more)
    return workdir


def levels(a, b):
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def test_a_cascade_is_its_stages_one_after_the_other(base, super_resolution, tmp_path):
    cascade = Cascade([str(base), str(super_resolution)], batch_size=2)
    images = cascade.draw(PROMPTS, [0, 1, 2])
    assert [image.shape for image in images] == [(16, 16, 3)] * 3
    assert cascade.side == 16

    assert (
        main(["sample", PROMPTS[1], "--seed=1", f"--checkpoint={base}", f"--out={tmp_path}"]) == 0
    )
    (drawn,) = (file for file in tmp_path.glob("*.png") if file.name != "grid.png")
    assert np.asarray(Image.open(drawn)).shape == (8, 8, 3)
    out = tmp_path / "large"
    arguments = ["upsample", str(drawn), f"--prompt={PROMPTS[1]}", "--seed=1", f"--out={out}"]
    assert main([*arguments, f"--checkpoint={super_resolution}"]) == 0
    large = np.asarray(Image.open(out / f"{drawn.stem}_x2.png"))
    assert levels(large, images[1]) <= 1  # another batch size: sums in another order
    other = tmp_path / "other.png"
    Image.fromarray(255 - np.asarray(Image.open(drawn))).save(other)
    arguments[1] = str(other)
    assert main([*arguments, f"--checkpoint={super_resolution}"]) == 0
    # What it is shown counts.
    assert levels(np.asarray(Image.open(out / "other_x2.png")), large) > 8
    both = Image.open(out / f"{drawn.stem}_x2_before_and_after.png")
    assert both.width > 2 * 16


def test_a_cascade_is_a_model_like_any_other(base, super_resolution, tmp_path):
    name = f"{base}+{super_resolution}"
    assert main(["sample", *PROMPTS, f"--checkpoint={name}", f"--out={tmp_path}"]) == 0
    files = [file for file in tmp_path.glob("*.png") if file.name != "grid.png"]
    assert {np.asarray(Image.open(file)).shape for file in files} == {(16, 16, 3)}
    cascade = Cascade([str(base), str(super_resolution)])
    costs, stages = cascade.costs(), [stage.costs() for stage in cascade.stages]
    assert costs["parameters"] == sum(stage["parameters"] for stage in stages)
    assert costs["evaluations"] == 2 * 3 + 2  # guidance doubles the first's three steps
    assert costs["flops"] > stages[0]["flops"] > 0


def test_a_comparison_shows_the_training_of_every_part(base, super_resolution):
    name = f"builtin:vq_64+{base}@2+{super_resolution}"
    cascade = Drawn(name, [], {"path": name, "chosen": None, "objectives": []})
    (section,) = training_curves([cascade])
    text = str(section)
    assert base.name in text and super_resolution.name in text


def test_a_folder_with_a_plus_in_its_name_is_no_cascade(base, tmp_path):
    (tmp_path / "a+b").symlink_to(base)
    assert isinstance(open_generator(str(tmp_path / "a+b")), Generator)
    assert isinstance(open_generator(f"{tmp_path}/a+b@2"), Generator)


def test_a_picture_of_another_size_is_enlarged_too(super_resolution, tmp_path):
    Image.new("RGBA", (7, 5), (10, 120, 200, 90)).save(tmp_path / "odd.png")
    arguments = [f"--checkpoint={super_resolution}", f"--out={tmp_path}"]
    assert main(["upsample", str(tmp_path / "odd.png"), *arguments]) == 0
    assert Image.open(tmp_path / "odd_x2.png").size == (14, 10)


def test_previews_show_the_low_resolution_too(super_resolution):
    shown = {file.name.split("_", 1)[-1] for file in super_resolution.glob("images/*.png")}
    assert any("low_resolution" in name for name in shown)
    assert any("samples" in name for name in shown)


def test_what_does_not_go_together_is_refused(base, super_resolution, generator_run):
    with pytest.raises(UserError, match="enlarges images: put it behind a model that draws"):
        Cascade([str(super_resolution), str(super_resolution)])
    with pytest.raises(UserError, match="draws from prompts only: put it first"):
        Cascade([str(base), str(base)])
    with pytest.raises(UserError, match="enlarges images of 8 pixels, but gets them with 16"):
        Cascade([str(generator_run), str(super_resolution)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "a", "--checkpoint=SUPER"], "use emu-jax upsample"),
        (["evaluate", "SUPER", "--judge="], "use emu-jax upsample"),
        (["upsample", "PICTURE", "--checkpoint=BASE"], "draws images and enlarges none"),
        (["upsample", "nowhere.png", "--checkpoint=SUPER"], "There is no image nowhere.png"),
        (["upsample", "BROKEN", "--checkpoint=SUPER"], "broken.png: not an image"),
    ],
)
def test_wrong_uses_end_in_one_sentence(arguments, words, base, super_resolution, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = {"BASE": base, "SUPER": super_resolution}
    names |= {"PICTURE": tmp_path / "picture.png", "BROKEN": tmp_path / "broken.png"}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "parameters"), [("base", 2.0e9), ("super", 600e6), ("super_1024", 400e6)]
)
def test_the_published_sizes_by_shape_alone(part, parameters):
    config = read(f"{runs.ROOT}/configs/pixel_diffusion.py:size=imagen,part={part}")
    task = make_task(config)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    total = sum(math.prod(shape.shape) for shape in params.values())
    assert total == pytest.approx(parameters, rel=0.03)


def test_super_resolution_is_for_pixels(generator_run):
    config = read(f"{runs.ROOT}/configs/pixel_diffusion.py:size=test,part=super")
    config.codec = dict(kind="autoencoder", path="builtin:autoencoder_64")
    with pytest.raises(UserError, match="works on pixels"):
        make_task(config)
    with pytest.raises(UserError, match="part=super_1024 is only available for size=imagen"):
        read(f"{runs.ROOT}/configs/pixel_diffusion.py:size=tiny,part=super_1024")
    config = read(f"{runs.ROOT}/configs/pixel_diffusion.py:size=test")
    config.sampling.threshold = "hard"
    with pytest.raises(UserError, match="threshold is 'hard'; use one of none, static, dynamic"):
        make_task(config)
