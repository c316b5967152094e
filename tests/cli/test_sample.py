"""``emu-jax sample``: which pictures appear, which are drawn anew, and what they depend on."""

import copy
import json
import shutil
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import emu_jax
from emu_jax.assembly import drawing
from emu_jax.assembly.hosting import Host
from emu_jax.cli.arguments import seed_or_random
from emu_jax.cli.main import main
from emu_jax.evaluation.prompt_sets import PromptSet, open_prompts

PROMPTS = ("a red disc", "blue ball", "a green disc")
# So drawn, a picture depends on both: after two steps a hardly trained denoiser leaves no trace of
# the noise, and guidance makes the text count.
SETTINGS = ("--per_prompt=2", "--steps=6", "--spacing=trailing", "--guidance_scale=20")


def sample(checkpoint, out, *more: object) -> dict[str, np.ndarray]:
    """The pictures by file name, without the grid."""
    arguments = [*SETTINGS, "--checkpoint", checkpoint, "--out", out, *more]
    assert main(["sample", *map(str, arguments)]) == 0
    return pictures(out)


def pictures(folder) -> dict[str, np.ndarray]:
    files = sorted(path for path in folder.glob("*.png") if path.name != "grid.png")
    return {path.name: np.asarray(Image.open(path)) for path in files}


def index(folder) -> dict[str, dict]:
    """The lines of ``metadata.jsonl`` by file name."""
    lines = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    return {line["file_name"]: line for line in lines}


def levels(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    """The largest difference of two sets of pictures of the same names, of 255."""
    assert a.keys() == b.keys()
    return max(int(np.abs(a[name].astype(int) - b[name]).max()) for name in a)


@pytest.fixture(scope="module")
def drawn(generator_run, tmp_path_factory):
    """Six pictures in batches of four: the second batch is filled up."""
    out = tmp_path_factory.mktemp("drawn")
    sample(generator_run, out, *PROMPTS, "--batch_size=4")
    return out


def test_a_picture_a_prompt_and_a_grid_appear(drawn):
    found = pictures(drawn)
    names = [f"{prompt.replace(' ', '_')}_{seed}" for prompt in PROMPTS for seed in (0, 1)]
    assert [name.rsplit("_", 1)[0] for name in found] == sorted(names)
    assert all(image.shape == (16, 16, 3) for image in found.values())
    assert (drawn / "grid.png").exists()
    assert not list(drawn.glob("*.tmp"))
    about = index(drawn)
    assert about.keys() == found.keys()
    assert [(one["text"], one["seed"]) for one in about.values()] == [
        (prompt, seed) for prompt in PROMPTS for seed in (0, 1)
    ]


def test_a_file_says_how_its_image_was_made(drawn, generator_run):
    (file,) = drawn.glob("a_red_disc_1_*.png")
    text = Image.open(file).text
    expected = {
        **{"prompt": "a red disc", "negative_prompt": "", "seed": "1", "steps": "6"},
        **{"model": str(generator_run), "guidance_scale": "20.0", "sampler": "dpmpp_2m"},
        **{"spacing": "trailing"},
    }
    assert {name: text[name] for name in expected} == expected
    assert len(text["weights"]) == 64 and text["software"].startswith("emu_jax ")


def test_weights_in_prompts_change_their_images_only(drawn, generator_run, tmp_path, capsys):
    """Files carry the prompts as typed; a prompt without weights is drawn to the same bits."""
    prompts = ("a (red:3) disc", "a (green:1) disc", PROMPTS[0], PROMPTS[1])
    more = ("--prompt_weighting=a1111", "--per_prompt=1", "--batch_size=4")
    found = sample(generator_run, tmp_path, *prompts, *more)
    about = {one["text"]: found[name] for name, one in index(tmp_path).items()}
    assert [*about] == [*prompts]
    first = {one["text"]: name for name, one in reversed(index(drawn).items())}
    plain = {prompt: pictures(drawn)[name] for prompt, name in first.items()}
    for prompt, same in zip(prompts[1:], (PROMPTS[2], *PROMPTS[:2]), strict=True):
        np.testing.assert_array_equal(about[prompt], plain[same])
    assert np.abs(about[prompts[0]].astype(int) - plain[PROMPTS[0]]).max() > 8
    (file,) = tmp_path.glob("a_red_3_disc_0_*.png")
    text = Image.open(file).text
    assert (text["prompt"], text["prompt_weighting"]) == (prompts[0], "a1111")
    assert main(["sample", "fox", "a (red", "--checkpoint=/no", f"--out={tmp_path}", *more]) == 2
    assert "does not close the '(' at character 3" in capsys.readouterr().err


def test_prompt_and_seed_make_the_picture(drawn):
    """What the tests of equality below rest on."""
    found = list(pictures(drawn).values())
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one.astype(int) - other).max() > 8


def test_pictures_that_are_there_are_not_drawn_again(drawn, generator_run, tmp_path):
    out = shutil.copytree(drawn, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_*.png")}
    sample(generator_run, out, *PROMPTS, "--batch_size=4")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*_*.png")} == before


def test_a_missing_picture_is_drawn_to_the_same_bytes(drawn, generator_run, tmp_path):
    out = shutil.copytree(drawn, tmp_path / "out")
    lost = sorted(out.glob("*_*.png"))[1]
    bytes_before = lost.read_bytes()
    lost.unlink()
    sample(generator_run, out, *PROMPTS, "--batch_size=4")
    assert lost.read_bytes() == bytes_before


def test_prompts_come_from_a_file_as_well(drawn, generator_run, tmp_path):
    """With their columns, and files that are there are described although none is drawn."""
    file = tmp_path / "prompts.tsv"
    file.write_text(f"prompt\tkind\n{PROMPTS[1]}\tball\n\tnone\n  {PROMPTS[2]} \tdisc\n")
    out = shutil.copytree(drawn, tmp_path / "out")
    (out / "metadata.jsonl").write_text('{"file_name": "other.png", "text": "a fox"}\n')
    assert sample(generator_run, out, PROMPTS[0], "--prompts", file, "--batch_size=4") == {
        name: pytest.approx(image) for name, image in pictures(drawn).items()
    }
    about = index(out)
    assert about.pop("other.png")["text"] == "a fox" and about.keys() == pictures(drawn).keys()
    kinds = [(one["text"], one["columns"]["kind"]) for one in about.values() if not one["seed"]]
    assert kinds == [*zip(PROMPTS, ("", "ball", "disc"), strict=True)]


def test_images_are_written_as_they_come_and_not_kept(tmp_path):
    """A hundred thousand prompts fit in memory."""
    alive = []

    class Generator:
        side, recipe, fingerprints, prompt_weighting = 8, {}, {"weights": "w"}, "none"
        further, hint = (), ""
        config = SimpleNamespace(
            sampling=SimpleNamespace(
                sampler="ddim", steps=1, spacing="trailing", guidance_scale=1.0
            )
        )

        def draw_each(self, prompts, seeds, negative, size, images, previews):
            assert images == {} and previews is None
            for i, _ in enumerate(prompts):
                assert len(list(tmp_path.glob("*.png"))) == i
                assert sum(one() is not None for one in alive) <= 2
                image = np.full((8, 8, 3), i, np.uint8)
                alive.append(weakref.ref(image))
                yield image

    host = Host(open=lambda *_, **__: Generator())
    prompts = PromptSet((*map(str, range(70)), "7"))  # one is repeated
    names = drawing.draw_prompts("model", prompts, str(tmp_path), host=host)
    assert len(names) == len(alive) == 70 and index(tmp_path).keys() == set(names)
    assert Image.open(tmp_path / names[69]).getpixel((0, 0)) == (69,) * 3
    width, height = Image.open(tmp_path / "grid.png").size
    side = (width - 6) / 8  # of 64
    assert 128 < side < 140 and height > 8 * 128


def test_shards_divide_the_images(drawn, generator_run, nursery, tmp_path):
    """Those of connected processes, and those that are named."""
    out = tmp_path / "out"
    command = ["sample", *PROMPTS, *SETTINGS, f"--checkpoint={generator_run}", f"--out={out}"]
    nursery.run("sample_on_two", command, processes=2)
    assert levels(pictures(out), pictures(drawn)) <= 1
    assert index(out) == index(drawn) and (out / "grid.png").exists()
    for process in (0, 1):
        assert "3 images in" in nursery.log("sample_on_two", process).read_text()
    part = tmp_path / "part"
    nursery.run("sample_a_share", [*command, f"--out={part}", "--shard=2/3"])
    names = list(index(part))
    assert pictures(part).keys() == {names[1], names[4]} and not (part / "grid.png").exists()
    assert levels(pictures(part), {name: pictures(drawn)[name] for name in pictures(part)}) <= 1


def test_a_byte_order_mark_is_no_letter_and_latin_1_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a red disc\n", "utf-8-sig")
    assert open_prompts(str(file)).prompts == ("a red disc",)
    file.write_bytes("ein grüner Ball\n".encode("latin-1"))
    assert main(["sample", f"--prompts={file}"]) == 2
    assert "line 1 is not UTF-8 text" in capsys.readouterr().err


def test_a_random_seed_is_printed(capsys):
    seeds = {seed_or_random("-1") for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= number < 2**31 for number in seeds)
    assert {int(line.split()[1]) for line in capsys.readouterr().out.splitlines()} == seeds


def test_width_and_height_are_multiples_of_the_codec_s_factor(generator_run, tmp_path, capsys):
    """tests/test_journey.py draws other sizes."""
    changes = ("--checkpoint", str(generator_run), "--out", str(tmp_path))
    assert main(["sample", "a red disc", *changes, "--height=20"]) == 2
    assert "16 x 20 pixels does not fit this model: use multiples of 8" in capsys.readouterr().err


def test_everything_that_changes_an_image_changes_its_name(generator_run, tmp_path):
    """Another objective for the same weights, and no other place of them."""
    generator = emu_jax.load(str(generator_run))
    before = copy.deepcopy(generator.recipe)
    generator.config.codec.path = "elsewhere"
    assert generator.recipe == before
    generator.config.process.prediction = "eps"
    assert generator.recipe != before


def test_the_batch_size_does_not_change_a_picture(drawn, generator_run, tmp_path):
    whole = sample(generator_run, tmp_path, *PROMPTS, "--batch_size=3")
    assert levels(whole, pictures(drawn)) <= 1


@pytest.mark.parametrize("batch_size", [1, 8])  # of one, the devices divide the image
def test_the_number_of_devices_does_not_change_a_picture(
    batch_size, drawn, generator_run, nursery, tmp_path
):
    out = tmp_path / "out"
    command = ["sample", *PROMPTS, *SETTINGS, f"--checkpoint={generator_run}", f"--out={out}"]
    command.append(f"--batch_size={batch_size}")
    nursery.run(f"sample_on_eight_{batch_size}", command, devices=8)
    assert levels(pictures(out), pictures(drawn)) <= 1


def test_other_settings_make_other_pictures_beside(drawn, generator_run, tmp_path):
    out = shutil.copytree(drawn, tmp_path / "out")
    before = pictures(out)
    changes = ("--negative", "blue", "--guidance_scale=9", "--batch_size=4")
    after = sample(generator_run, out, PROMPTS[0], *changes)
    assert len(after) == len(before) + 2
    new = [image for name, image in after.items() if name not in before]
    assert not any(np.array_equal(a, b) for a in new for b in before.values())


@pytest.mark.parametrize(
    "option",
    [
        *("--steps=0", "--batch_size=-1", "--per_prompt=none", "--seed=-2", "--seed=4294967296"),
        *("--guidance_scale=-1", "--guidance_scale=nan", "--width=0", "--shard=3/2"),
        *("--shard=0/2", "--select=kind == x", "--prompt_column=text"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(option, capsys):
    assert main(["sample", "a fox", option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
