"""COCO's form: masks against pycocotools, a whole folder, and what is damaged or hostile in one."""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_foreign_files import changed

from emu_jax.cli.main import main
from emu_jax.data.coco import instances, read_split
from emu_jax.data.coco_classes import CLASSES
from emu_jax.data.coco_masks import draw, number, polygon
from emu_jax.data.further import decode_further
from emu_jax.data.mixture import Selection, Vocabulary
from emu_jax.data.source import open_source
from emu_jax.errors import UserError

SIZE = (24, 32)
BOX = [4, 3, 20, 3, 20, 15, 4, 15]
THIN = [6.2, 1.9, 7.1, 20.3, 6.4, 22.7]
# The box in pycocotools' text.
BOX_TEXT = "S3<<" + "0" * 29 + "m8"


def shapes(count):
    """Outlines of many kinds: also outside of the image, of no area, and of repeated points."""
    random = np.random.default_rng(0)
    for i in range(count):
        size = tuple(int(x) for x in random.integers(1, 60, 2))
        points = random.uniform(-20, 80, (int(random.integers(3, 12)), 2))
        points = np.round(points) if i % 3 == 0 else points
        points = np.clip(points, 0, size[::-1]) if i % 4 == 0 else points
        points = np.repeat(points, 2, axis=0) if i % 5 == 0 else points
        yield points.ravel().tolist(), size


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_masks_equal_those_of_pycocotools():
    oracle = pytest.importorskip("pycocotools.mask")
    for points, size in shapes(500):
        text = oracle.frPyObjects([points], *size)[0]
        mask = oracle.decode(text).astype(bool)
        assert np.array_equal(polygon(points, size), mask)
        noise = np.random.default_rng(len(points)).integers(0, 2, size).astype(np.uint8)
        for stored in (text, oracle.encode(np.asfortranarray(noise))):
            expected = oracle.decode(stored).astype(bool)
            entry = {"size": [*size], "counts": stored["counts"].decode()}
            assert np.array_equal(draw(entry, size), expected)


def test_masks_are_as_they_were():
    """The same outlines where pycocotools is not installed, as it drew them."""
    digest = hashlib.sha256()
    for points, size in shapes(500):
        digest.update(np.packbits(polygon(points, size)).tobytes())
    assert digest.hexdigest()[:16] == "4dc3286495a63a93"
    box = np.zeros(SIZE, bool)
    box[3:15, 4:20] = True
    runs = [4 * 24 + 3, *[12, 12] * 15, 12]
    runs.append(24 * 32 - sum(runs))
    assert np.array_equal(draw([BOX], SIZE), box)
    assert np.array_equal(draw({"size": [24, 32], "counts": runs}, SIZE), box)
    assert np.array_equal(draw({"size": [24, 32], "counts": BOX_TEXT}, SIZE), box)
    both = draw([BOX, THIN], SIZE)
    assert np.array_equal(both, box | polygon(THIN, SIZE)) and both.sum() > box.sum()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "neither polygons nor run lengths"),
        ([[1, 2, 3, 4]], "fewer than three points"),
        ([[1, 2, 3, 4, 5, "x"]], "no number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "farther than"),
        ([[1, 2, 3, 4, 5, 10**400]], "no number"),
        ([[0, 0, 1e6, 0, 0, 1e6]], "longer than"),
        ({"size": [2, 3], "counts": [6]}, "another size than [24, 32]"),
        ({"size": [24, 32], "counts": [767]}, "do not sum"),
        ({"size": [24, 32], "counts": [800, -32]}, "do not sum"),
        ({"size": [24, 32], "counts": [True]}, "not whole numbers"),
        ({"size": [24, 32], "counts": "o" * 99}, "damaged text"),
        ({"size": [24, 32], "counts": "P"}, "damaged text"),
        ({"size": [24, 32]}, "not whole numbers"),
    ],
)
def test_damaged_masks_have_a_reason(segmentation, reason):
    with pytest.raises(UserError, match=reason.replace("[", r"\[")):
        draw(segmentation, SIZE)


def test_the_smaller_instance_is_in_front():
    large, small, covered = np.zeros((3, *SIZE), bool)
    large[2:20, 2:20], small[5:9, 5:9], covered[6, 6] = True, True, False
    drawn, seen = number([small, covered, large], SIZE)
    assert seen == [0, 2]
    assert np.array_equal(drawn, np.where(small, 1, np.where(large, 2, 0)))


@pytest.fixture
def folder(tmp_path):
    """Three images in COCO's form, and an entry of each kind."""
    root = tmp_path / "COCO"
    for place in ("annotations", "val2017", "stuffthingmaps/val2017"):
        (root / place).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", SIZE[::-1], (50 * i, 0, 0)).save(root / f"val2017/{i}.jpg")
    labels = np.full(SIZE, 255, np.uint8)
    labels[:, :10] = 181
    Image.fromarray(labels).save(root / "stuffthingmaps/val2017/0.png")
    images = [{"id": 7 + i, "file_name": f"{i}.jpg", "height": 24, "width": 32} for i in range(3)]
    captions = [
        {"id": 1, "image_id": 7, "caption": "A box  and a line."},
        {"id": 2, "image_id": 7, "caption": "Two things."},
        {"id": 3, "image_id": 8, "caption": "Nothing."},
    ]
    crowd = {"size": [24, 32], "counts": [0, 100, 668]}
    instances = [
        dict(id=1, image_id=7, category_id=3, iscrowd=0, segmentation=[BOX], area=1.0, ignore=1),
        dict(id=2, image_id=7, category_id=90, iscrowd=1, segmentation=crowd),
        dict(id=3, image_id=7, category_id=90, iscrowd=0, segmentation=[THIN]),
    ]
    categories = [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]
    write(root, "captions", dict(images=images, annotations=captions))
    document = dict(images=images, annotations=instances, categories=categories)
    write(root, "instances", document)
    return root, document


def write(root, kind, document):
    (root / f"annotations/{kind}_val2017.json").write_text(json.dumps(document))


def build(root, tmp_path, *more):
    data = f"--data_dir={tmp_path / 'data'}"
    return main(["data", "build", "coco/val2017", f"--path={root}", data, *more])


def label_map(source, record, name="instances"):
    return np.asarray(decode_further(source.read(record, name), name))


def test_a_folder_in_cocos_form(folder, tmp_path, capsys):
    root, document = folder
    assert build(root, tmp_path) == 0
    said = capsys.readouterr().err
    assert "1 crowd regions are background, 0 instances are hidden" in said
    assert "not read, since unknown: annotations.'ignore'" in said and "area" not in said
    source = open_source("coco/val2017", tmp_path / "data")
    rows = source.manifest.table.to_pylist()
    assert [row["key"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [row["captions"] for row in rows] == [
        ["A box and a line.", "Two things."],
        ["Nothing."],
        [],
    ]
    assert rows[0]["classes"] == ["car", "toothbrush"] and rows[1]["classes"] == []
    assert [(row["count"], row["crowds"]) for row in rows] == [(2, 1), (0, 0), (0, 0)]
    thin, box = polygon(THIN, SIZE), polygon(BOX, SIZE)
    assert np.array_equal(label_map(source, 0), np.where(thin, 2, np.where(box, 1, 0)))
    assert not label_map(source, 1).any()
    assert set(label_map(source, 0, "mask").ravel()) == {181, 255}
    assert not source.read(1, "mask") and rows[1]["mask"] == ""
    numbers = Vocabulary(CLASSES, 3).numbers(Selection(source), "classes")
    assert numbers.tolist() == [[2, 79, -1], [-1] * 3, [-1] * 3]
    assert source.read(0) == (root / "val2017/0.jpg").read_bytes()

    # It exists, and another folder is another data set.
    assert build(root, tmp_path) == 0
    assert build(tmp_path, tmp_path) == 2
    assert "was built from" in capsys.readouterr().err

    # Damage is listed by name; the rest stays.
    outside = tmp_path / "secret.jpg"
    outside.write_bytes((root / "val2017/0.jpg").read_bytes())
    (root / "val2017/1.jpg").unlink()
    (root / "val2017/1.jpg").symlink_to(outside)
    third = dict(id=9, image_id=9, category_id=5, segmentation=[BOX])
    lost = dict(third, image_id=99)
    document["annotations"] += [third, lost]
    write(root, "instances", document)
    assert build(root, tmp_path, "--force") == 0
    source = open_source("coco/val2017", tmp_path / "data")
    assert [row["key"] for row in source.manifest.table.to_pylist()] == ["0.jpg", "2.jpg"]
    assert source.manifest.select("instances != ''").tolist() == [0]
    listed = open_lines(source, "damaged.jsonl")
    assert listed["1.jpg"] == "it is a link out of the folder"
    assert listed["2.jpg"] == "annotation 9: its category is not in the file"
    assert listed["instances_val2017.json, annotations[4]"] == "it belongs to no image of the file"
    assert list(open_lines(source, "uncaptioned.jsonl")) == ["2.jpg"]


def test_what_the_file_of_instances_does_not_know_has_no_map(folder):
    """An image that only captions name, and one that was resized after it was annotated."""
    root, document = folder
    document["images"][0] |= {"height": 48, "width": 64}
    del document["images"][1]
    write(root, "instances", document)
    split = read_split(epath.Path(root), "val2017")
    for image, reason in ((7, "32 x 24 pixels, and another size"), (8, "does not name it")):
        with pytest.raises(UserError, match=reason):
            instances(split.images[image], split.categories, SIZE)
    assert not instances(split.images[9], split.categories, SIZE)[0].any()


def open_lines(source, name):
    lines = (Path(source.directory) / name).read_text().splitlines()
    return {row["file_name"]: row.get("reason", "") for row in map(json.loads, lines)}


def test_damaged_files_are_read_or_refused(folder):
    """By chance: every case is a split whose images have maps or a reason, or one sentence."""
    root, document = folder
    chance, outcomes = random.Random(0), Counter()
    for _ in range(300):
        write(root, "instances", changed(document, chance))
        try:
            split = read_split(epath.Path(root), "val2017")
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        assert all(root in (root / "val2017" / x.file_name).parents for x in split.images.values())
        for image in split.images.values():
            try:
                drawn, classes = instances(image, split.categories, SIZE)
                assert drawn.max() == len(classes)
                outcomes["drawn"] += 1
            except UserError:
                outcomes["damaged"] += 1
    assert min(outcomes.values()) > 30 and len(outcomes) == 3, outcomes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(images=[{"id": 1, "file_name": "../a.jpg"}]), "use a path inside"),
        (dict(images=[{"id": 1, "file_name": "/etc/passwd"}]), "use a path inside"),
        (dict(images=[{"id": "1", "file_name": "0.jpg"}]), "has no id; use a whole number"),
        (dict(images=[{"id": 1, "file_name": "\ud800.jpg"}]), "use a path inside"),
        (dict(images=[{"id": 1, "file_name": 3}]), "has a int as file_name"),
        (dict(images=[{"id": 7, "file_name": "1.jpg"}]), "another image has the id 7"),
        (dict(images=[3]), "is of type int; use an object"),
        (dict(annotations=None), "no list 'annotations'"),
        (dict(categories=[{"id": 3}]), "needs an id"),
        (dict(categories=[{"id": 3, "name": 5}]), "only text"),
    ],
)
def test_what_is_not_cocos_form_is_one_sentence(folder, tmp_path, change, said, capsys):
    root, document = folder
    write(root, "instances", document | change)
    assert build(root, tmp_path) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_without_annotations_or_images_is_named(folder, tmp_path, capsys):
    root, _ = folder
    data = f"--data_dir={tmp_path / 'data'}"
    for arguments, said in (
        (["coco/train2017", f"--path={root}"], "no annotations/captions_train2017.json"),
        (["coco/val2017"], "needs a folder in COCO's form"),
        (["coco/val2017", f"--path={root / 'annotations'}"], "has no folder val2017"),
    ):
        assert main(["data", "build", *arguments, data]) == 2
        assert said in capsys.readouterr().err
    (root / "annotations/instances_val2017.json").write_text("[" * 100_000)
    assert build(root, tmp_path) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
