"""Pairs of images: synthetic ones, their faults, and tables of people's preferences."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from emu_jax.cli.main import main
from emu_jax.data.builder import build
from emu_jax.data.decode import open_image
from emu_jax.data.dimensions import DIMENSIONS
from emu_jax.data.faults import CHANGED, REDRAWN, names, spoil
from emu_jax.data.mixture import Integers, Selection, Vocabulary
from emu_jax.data.pipeline import Loader, StreamSpec
from emu_jax.data.preferences import TINY, VOTES
from emu_jax.data.source import open_source
from emu_jax.errors import UserError


def drawing():
    """An orange disc, shaded, with a green square on it."""
    y, x = np.mgrid[:64, :64]
    pixels = np.zeros((64, 64, 4), np.uint8)
    disc = (x - 32) ** 2 + (y - 28) ** 2 < 500
    pixels[disc] = np.stack([240 - x, 150 - x, 40 + 0 * x, 255 + 0 * x], -1)[disc]
    pixels[20:30, 25:32] = (60, 190, 80, 255)
    return Image.fromarray(pixels)


def plain():
    return np.asarray(spoil(drawing(), {})).astype(int)


@pytest.mark.parametrize(
    ("dimension", "name"), [(d, name) for d, changes in CHANGED.items() for name in changes]
)
def test_a_fault_changes_its_dimension(dimension, name):
    """What stays: the background's white, of color the places, of lighting the hues, of layout the
    colors.
    """
    spoiled = [np.asarray(spoil(drawing(), {name: seed})).astype(int) for seed in "abab"]
    np.testing.assert_array_equal(spoiled[0], spoiled[2])  # a function of the seed
    before, after = plain(), spoiled[0]
    assert np.abs(before - after).mean() > 1
    if name != "cropped":
        assert (after[-3:, -3:] >= 245).all() or dimension == "detail"
    if dimension in ("color", "lighting"):
        white = (before == 255).all(-1)
        assert (after[white] == 255).all()
    if dimension == "lighting":
        moved = after - before
        assert np.corrcoef(before[..., 0].ravel(), after[..., 0].ravel())[0, 1] > 0.8
        assert name != "exposed" or (moved >= 0).all() or (moved <= 0).all()
    if dimension == "layout":
        opaque = after[(after < 200).any(-1)]
        orange = (opaque[:, 0] > opaque[:, 2]).mean()
        assert orange > 0.8


def test_drawings_lose_a_layer_or_their_dark_tones():
    svg = b"""<svg><g id="color"><path fill="#D22F27"/></g><g id="skin-shadow"><g><path/></g></g>
<g id="hair"/><g id="line"><path d="M0"/><g/></g><g id="end"/></svg>"""
    unshaded, lineless = (REDRAWN[name][1](svg) for name in ("unshaded", "lineless"))
    assert b"#ea5a47" in unshaded and b"skin-shadow" not in unshaded and b"M0" in unshaded
    assert b"M0" not in lineless and b"#D22F27" in lineless
    assert all(x.endswith(b'<g id="end"/></svg>') for x in (unshaded, lineless))


def test_synthetic_pairs_differ_in_one_dimension(preferences):
    source = open_source("preferences/openmoji_tiny", preferences)
    column = source.manifest.column
    assert len(source) == TINY and source.further == ["other"]
    of = {name: d for d in DIMENSIONS for name in names("openmoji", d)}
    assert len(of) == sum(len(names("openmoji", d)) for d in DIMENSIONS)
    assert [list(column("dimension")).count(d) for d in DIMENSIONS] == [TINY // 4] * 4
    assert [of[fault] for fault in column("fault")] == list(column("dimension"))
    for own, shared in zip(column("dimension"), column("shared"), strict=True):
        dimensions = [of[fault] for fault in shared]
        assert own not in dimensions and len(set(dimensions)) == len(dimensions)
    assert 0.3 < sum(map(len, column("shared"))) / (3 * TINY) < 0.7
    assert set(column("votes") + column("votes_other")) == {VOTES}
    assert 0.02 < column("votes_other").mean() / VOTES < 0.2
    different = [
        np.any(np.asarray(open_image(source.read(i))) != np.asarray(open_image(other)))
        for i in range(TINY)
        for other in [source.read(i, "other")]
    ]
    assert all(different)


def test_rows_hold_both_images_in_one_view_and_the_votes(preferences):
    source = open_source("preferences/openmoji_tiny", preferences)
    spec = StreamSpec(
        batch_size=8,
        side=128,
        flip=True,
        further=("other",),
        columns={"votes": Integers(), "dimension": Vocabulary(DIMENSIONS, 1)},
    )
    rows = Loader(spec, [Selection(source)], {})(0)
    for i, record in enumerate(rows["record"]):
        one, two = (
            np.asarray(open_image(source.read(int(record), name)).convert("RGB"))
            for name in ("", "other")
        )
        mirrored = not np.array_equal(rows["image"][i], one)
        other = rows["further"]["other"][i]
        np.testing.assert_array_equal(other, two[:, ::-1] if mirrored else two)
        assert rows["columns"]["votes"][i] == source.manifest.column("votes")[record]
        dimension = DIMENSIONS[rows["columns"]["dimension"][i, 0]]
        assert dimension == source.manifest.column("dimension")[record]
    with pytest.raises(UserError, match="contains text; a column of integers"):
        Integers().numbers(Selection(source), "fault")


def image(color, size=(8, 6)):
    stored = io.BytesIO()
    picture = Image.new("RGB", size, color)
    ImageDraw.Draw(picture).point((1, 1), "white")
    picture.save(stored, "PNG")
    return stored.getvalue()


def pixel(data):
    return open_image(data).convert("RGB").getpixel((0, 0))


def built(folder, tmp_path):
    arguments = ["data", "build", "preferences/mine", f"--path={folder}", f"--data_dir={tmp_path}"]
    assert main(arguments) == 0
    source = open_source("preferences/mine", tmp_path)
    colors = [
        tuple(pixel(source.read(i, name)) for name in ("", "other")) for i in range(len(source))
    ]
    table = source.manifest.table.to_pylist()
    return source, [(*pair, row) for pair, row in zip(colors, table, strict=True)]


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def test_own_tables(tmp_path, capsys):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, color in (("red", RED), ("green", GREEN)):
        (folder / f"{name}.png").write_bytes(image(color))
    (folder / "wide.png").write_bytes(image(BLUE, (20, 6)))
    rows = [
        dict(image="red.png", other="green.png", prompt="a dot", dimension="color"),
        dict(image="green.png", other="red.png", prompt=" a  dot "),
        dict(image="red.png", other="wide.png", prompt="a dot"),
        dict(image="green.png", other="red.png", prompt="a tie", votes=0, votes_other=0),
    ]
    rows[0] |= dict(votes=3, votes_other=1, seconds=4)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, found = built(folder, tmp_path)
    assert "columns that are not read, since unknown: seconds\n" in capsys.readouterr().err
    assert [x[:2] for x in found] == [(RED, GREEN), (GREEN, RED), (GREEN, RED)]
    about = [
        (row["dimension"], row["votes"], row["votes_other"], row["captions"], row["split"])
        for *_, row in found
    ]
    assert about == [
        ("color", 3, 1, ["a dot"], "train"),
        ("", 1, 0, ["a dot"], "train"),  # no votes: the image is preferred
        ("", 0, 0, ["a tie"], "train"),
    ]
    damaged = [json.loads(x) for x in (Path(source.directory) / "damaged.jsonl").open()]
    assert "another aspect ratio" in damaged[0]["reason"] and "line 3" in damaged[0]["pair"]
    for row, said in (
        (dict(image="../red.png", other="red.png", prompt="x"), "use a path inside"),
        (dict(image="red.png", other="no.png", prompt="x"), "is not a file"),
        (
            dict(image="red.png", other="red.png", prompt="x", vote_other=3),
            "has a column 'vote_other'; use votes and votes_other",
        ),
        (
            dict(image="red.png", other="red.png", prompt="x", votes=-1),
            "'-1' is no number of votes",
        ),
        (dict(image="red.png", text="x"), "pairs need image, other, prompt"),
    ):
        (folder / "train.jsonl").write_text(json.dumps(row))
        with pytest.raises(UserError, match=said):
            build("preferences/mine", tmp_path, path=folder, force=True)


def test_pick_a_pic(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    labels = [(1, 0, True), (0, 1, True), (0.5, 0.5, True), (0, 1, False)]
    table = pa.table(
        {
            "jpg_0": [image(RED)] * 4,
            "jpg_1": [image(GREEN)] * 4,
            "caption": ["a", "b", "c", "d"],
            "label_0": [float(x) for x, _, _ in labels],
            "label_1": [float(x) for _, x, _ in labels],
            "has_label": [x for *_, x in labels],
            "user_id": [1, 2, 3, 4],
        }
    )
    pq.write_table(table, folder / "validation_unique-00000-of-00001.parquet")
    _, found = built(folder, tmp_path)
    assert [(one, two, row["votes"], row["votes_other"]) for one, two, row in found] == [
        (RED, GREEN, 1, 0),
        (GREEN, RED, 1, 0),
        (RED, GREEN, 1, 1),
    ]
    assert [row["captions"] for *_, row in found] == [["a"], ["b"], ["c"]]
    assert {row["split"] for *_, row in found} == {"validation_unique"}


def test_image_reward(tmp_path, capsys):
    folder = tmp_path / "pairs"
    (folder / "images").mkdir(parents=True)
    for name, color in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        (folder / "images" / f"{name}.png").write_bytes(image(color))
    names = [f"images/{name}.png" for name in ("red", "green", "blue")]
    items = [dict(prompt="a dot", generations=names, ranking=[2, 1, 2], prompt_id="1")]
    (folder / "test.json").write_text(json.dumps(items))
    _, found = built(folder, tmp_path)
    assert "not read" not in capsys.readouterr().err
    assert [x[:2] for x in found] == [(GREEN, RED), (GREEN, BLUE)]  # a tie is no pair
    assert [row["votes"] for *_, row in found] == [1, 1]
    (folder / "test.json").write_text(json.dumps([dict(prompt="x", generations=names)]))
    with pytest.raises(UserError, match="as many numbers in ranking"):
        build("preferences/mine", tmp_path, path=folder, force=True)
