"""Commands that draw from images, together, on a minuscule generator; and tar files of images."""

import io
import json
import tarfile

import numpy as np
from PIL import Image, ImageDraw

import emu_jax
from emu_jax.assembly.previews import Previews
from emu_jax.assembly.starting import StartImage, draw_from
from emu_jax.cli.main import main

FEW = ("--steps=3", "--batch_size=2")


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_restyle_backdrop_sticker_and_sample_from_an_image(generator_run, tmp_path, capsys):
    photo, mask = tmp_path / "disc.png", tmp_path / "mask.png"
    image = Image.new("RGB", (30, 20), "white")
    ImageDraw.Draw(image).ellipse((10, 4, 20, 14), fill="red")
    image.save(photo)
    kept = Image.new("L", image.size)
    ImageDraw.Draw(kept).rectangle((0, 0, 9, 19), fill=255)
    kept.save(mask)
    common = (*FEW, f"--checkpoint={generator_run}")

    def run(*arguments, status=0):
        assert main([*map(str, arguments), *common]) == status, capsys.readouterr().err
        return capsys.readouterr()

    # Restyled: as large as it is drawn, and different from seed to seed.
    out = tmp_path / "restyled"
    run("restyle", photo, "a green disc", "--strength=1", "--per_prompt=2", f"--out={out}")
    first, second = (read(out / f"disc_a_green_disc_{seed}.png") for seed in (0, 1))
    assert first.shape == (11, 16, 3) and not np.array_equal(first, second)
    about = Image.open(out / "disc_a_green_disc_0.png").text
    assert (about["prompt"], about["from"], about["strength"]) == (
        *("a green disc", str(photo)),
        "1.0",
    )
    assert (out / "disc_a_green_disc.png").exists()
    # The backdrop is drawn, around the photograph too; the subject is the photograph's.
    source = np.asarray(image)
    subject = (source == (255, 0, 0)).all(-1)
    where = ("--click=15,9", "--margin=0.5", "--feather=0")
    run("backdrop", photo, "blue ball", *where, f"--out={tmp_path}")
    found = read(tmp_path / "disc_blue_ball_0.png")
    assert found.shape == (50, 60, 3)
    np.testing.assert_array_equal(found[15:-15, 15:-15][subject], source[subject])
    assert (found[15:-15, 15:-15] != source).any()
    refused = run("backdrop", photo, "a fox", "--click=0,0", f"--out={tmp_path}", status=2)
    assert "belongs to the background; click on the subject" in refused.err
    # A hardly trained model draws nothing that can be cut out.
    refused = run("sticker", "a red disc", "--count=2", f"--out={tmp_path}", status=2)
    assert refused.err.startswith("emu-jax: None of 2 drawings can be cut out")
    # Sampled around what a mask keeps.
    out = tmp_path / "sampled"
    options = (f"--image={photo}", f"--keep={mask}", "--strength=0.5", "--feather=0")
    run("sample", "a red disc", *options, f"--out={out}")
    (half,) = map(read, out.glob("a_red_disc_0_*.png"))
    np.testing.assert_array_equal(half[:, :10], source[:, :10])
    assert (half[:, 10:] != source[:, 10:]).any()
    assert "add --image=FILE" in run("sample", "a fox", f"--keep={mask}", status=2).err
    # From Python, with a strength of 1 as from noise.
    generator = emu_jax.load(str(generator_run), batch_size=2, steps=3)
    square = np.asarray(image.resize((16, 16)))
    (drawn,) = generator.draw("a red disc", [7])
    (started,) = generator.draw("a red disc", [7], start=StartImage(square, 1.0))
    np.testing.assert_array_equal(started, drawn)
    # Previews change no bit, from noise and around what stays.
    seen = []

    def show(done, steps, images):
        seen.append((done, steps, *(image.shape for image in images)))

    keep = np.asarray(kept, np.float32) / 255
    for start, size in ((None, (16, 16, 3)), (StartImage(source, 0.7, keep), source.shape)):
        given = (generator, start, ["a red disc"], [7])
        (watched,) = draw_from(*given, previews=Previews(show, every=1))
        (plain,) = draw_from(*given)
        np.testing.assert_array_equal(watched, plain)
        steps = 2 if start else 3
        assert seen == [(done, steps, size) for done in range(1, steps)]
        seen.clear()


def test_shards_of_images_continue_after_an_interruption(generator_run, tmp_path):
    """Every image has noise of its own and is the same however the work is divided."""
    table = tmp_path / "prompts.tsv"
    table.write_text("prompt\tkind\na red disc\tdisc\nblue ball\tball\na red disc\tagain\n")
    command = ["sample", f"--prompts={table}", f"--checkpoint={generator_run}", *FEW]
    command += ["--format=webdataset", "--shard_size=2", "--seed=5", "--guidance_scale=20"]
    out = tmp_path / "whole"
    assert main([*command, f"--out={out}"]) == 0
    files = sorted(out.glob("*.tar"))
    assert [file.name[8:] for file in files] == ["-000000.tar", "-000001.tar"]
    members, bytes_before = {}, {}
    for file in files:
        bytes_before[file.name] = file.read_bytes()
        with tarfile.open(file) as archive:
            members |= {one.name: archive.extractfile(one).read() for one in archive}
    assert [*members] == [f"{i:09d}.{kind}" for i in range(3) for kind in ("png", "txt", "json")]
    assert members["000000001.txt"] == b"blue ball"
    record = json.loads(members["000000002.json"])
    assert record == {"text": "a red disc", "seed": 7, "columns": {"kind": "again"}}
    images = [np.asarray(Image.open(io.BytesIO(members[f"{i:09d}.png"]))) for i in range(3)]
    assert not np.array_equal(images[0], images[2])
    # A lost file comes back to the same bytes, what is complete stays, and so does a share.
    files[1].unlink()
    (out / f"{files[1].name}.tmp").write_bytes(b"interrupted")
    times = files[0].stat().st_mtime_ns
    assert main([*command, f"--out={out}"]) == 0
    assert files[0].stat().st_mtime_ns == times
    assert {file.name: file.read_bytes() for file in out.glob("*.tar")} == bytes_before
    assert main([*command, f"--out={tmp_path / 'part'}", "--shard=2/2"]) == 0
    (second,) = (tmp_path / "part").glob("*.tar")
    assert second.read_bytes() == bytes_before[second.name] and second.name == files[1].name
    assert json.loads((out / f"{files[0].name[:8]}.json").read_text())["images"] == 3
