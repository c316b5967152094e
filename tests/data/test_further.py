"""Images that belong to an image: the same view, buckets, resuming, caches, folders, errors.

The oracle of alignment is an image computed from its own label map: gray value 40 x label.
"""

import io
import json
from contextlib import closing
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pytest
import runs
from PIL import Image

from emu_jax.assembly.config import read
from emu_jax.assembly.config import source as config_source
from emu_jax.assembly.streams import training_stream, validation_streams
from emu_jax.cli.main import main
from emu_jax.data.builder import build
from emu_jax.data.further import FURTHER, check_further, prepare_further
from emu_jax.data.images import View, prepare, view
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Selection, Vocabulary
from emu_jax.data.pipeline import Caches, Loader, StreamSpec, images_fingerprint, make_stream
from emu_jax.data.precompute import cache_moments
from emu_jax.data.source import open_source
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.inputs import training_batch
from emu_jax.tasks.base import RowSpec

THINGS = ["car", "apple", "pear"]
STEP = 40  # gray levels from label to label


def png(array, kind="PNG", **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def blocks(seed, height, width, size=10):
    """Labels 0 to 6 that are constant in blocks of `size` pixels."""
    shape = (-(-height // size), -(-width // size))
    labels = np.random.default_rng(seed).integers(0, 7, shape).astype(np.uint8)
    return labels.repeat(size, 0).repeat(size, 1)[:height, :width]


def gray(labels):
    return np.repeat(labels[..., None] * np.uint8(STEP), 3, -1)


class Labeled:
    """A source in memory: images of many shapes with their label maps as `instances`."""

    def __init__(self, count=24, shapes=((40, 40), (30, 60), (60, 30), (64, 128)), lacking=()):
        self.name, self.data, self.maps, rows, self.reads = "labeled", [], [], [], 0
        for i in range(count):
            h, w = shapes[i % len(shapes)]
            labels = blocks(i, h, w, min(h, w) // 2)
            self.data.append(png(gray(labels)))
            self.maps.append(b"" if i in lacking else png(labels))
            rows.append(
                {"key": f"r{i}", "width": w, "height": h, "sha256": f"{i:02x}" * 32, "captions": []}
                | {"source": "", "instances": "hash" if self.maps[-1] else ""}
                | {"things": THINGS[: i % 4]}
            )
        own = {"instances": pa.string(), "things": pa.list_(pa.string())}
        self.manifest = Manifest.from_rows(rows, own)

    def read(self, index, further=""):
        self.reads += further != ""
        return self.maps[index] if further else self.data[index]


SPEC = StreamSpec(
    batch_size=12,
    side=32,
    bucket_step=8,
    buckets=True,
    crop="random",
    flip=True,
    seed=5,
    further=("instances",),
)


def take(count, spec=SPEC, source=None, select="", **options):
    part = Selection(source or Labeled(), select=select)
    with closing(make_stream(spec, [part], {}, **options)) as batches:
        return list(islice(batches, count))


def assert_aligned(image, labels):
    """Away from borders of blocks every pixel has the gray value of its label."""
    inner = np.ones(labels.shape, bool)
    for axis in (0, 1):
        for shift in (-3, -2, -1, 1, 2, 3):
            inner &= np.roll(labels, shift, axis) == labels
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
    assert inner.sum() > 20
    gap = np.abs(image[..., 0].astype(int) - STEP * labels.astype(int))
    assert gap[inner].max() <= STEP // 4


def test_a_crop_without_resizing_is_exact():
    labels = blocks(0, 32, 200, 7)
    corners = set()
    for seed in range(20):
        image, sizes = prepare(png(gray(labels)), (32, 32), random_crop=True, flip=True, seed=seed)
        shown = view((32, 200), (32, 32), random_crop=True, flip=True, seed=seed)
        found = prepare_further(png(labels), "instances", shown)
        assert found.shape == (32, 32) and found.dtype == np.uint8
        assert np.array_equal(image[..., 0], STEP * found)
        assert sizes[2:4].tolist() == list(shown.corner)
        corners.add((*shown.corner, shown.mirrored))
    assert len(corners) > 10 and {mirrored for *_, mirrored in corners} == {False, True}


@pytest.mark.parametrize("scale", [2, 3])
def test_labels_are_resized_by_nearest_neighbor(scale):
    labels = np.random.default_rng(0).integers(0, 256, (12, 24)).astype(np.uint8)
    larger = View((12 * scale, 24 * scale), (0, 0), (12 * scale, 24 * scale), False)
    expected = labels.repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(prepare_further(png(labels), "mask", larger), expected)
    smaller = View((12, 24), (2, 3), (8, 16), True)
    found = prepare_further(png(expected), "mask", smaller)
    assert np.array_equal(found, labels[2:10, 3:19][:, ::-1])


def test_other_images_follow_their_image_at_any_size():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(np.uint8)
    half = image.reshape(16, 2, 32, 2, 3).mean((1, 3)).astype(np.uint8)
    for seed in range(4):
        crop = dict(random_crop=True, flip=True, seed=seed)
        shown = view((32, 64), (32, 32), **crop)
        same = prepare_further(png(image), "edges", shown)
        assert np.array_equal(same, prepare(png(image), (32, 32), **crop)[0])
        smooth = Image.fromarray(half).resize((64, 32), Image.Resampling.LANCZOS)
        expected = prepare(png(smooth), (32, 32), **crop)[0]
        assert np.array_equal(prepare_further(png(half), "low_resolution", shown), expected)


def test_streams_keep_label_and_image_aligned_in_every_bucket():
    shapes, seen = set(), 0
    for batch in take(20):
        image, labels = batch["image"], batch["further"]["instances"]
        assert labels.shape == image.shape[:3] and labels.dtype == np.uint8
        shapes.add(labels.shape[1:])
        for row in range(len(image)):
            assert_aligned(image[row], labels[row])
            seen += labels[row].max() > 0
    assert len(shapes) == 3 and seen > 200


def test_resuming_and_hosts_give_the_same_rows():
    whole = take(9)
    for a, b in zip(whole[5:], take(4, start_step=5), strict=True):
        assert np.array_equal(a["further"]["instances"], b["further"]["instances"])
        assert np.array_equal(a["image"], b["image"])
    rows = np.array([1, 4, 7])
    for a, b in zip(whole, take(3, rows=rows), strict=False):
        assert np.array_equal(a["further"]["instances"][rows], b["further"]["instances"])


def test_streams_that_need_none_are_unchanged_and_read_none():
    source = Labeled()
    for a, b in zip(take(6), take(6, replace(SPEC, further=()), source), strict=True):
        assert set(a) - set(b) == {"further"}
        assert all(np.array_equal(a[name], b[name]) for name in b)
    assert source.reads == 0


def test_cached_rows_have_the_same_further_images(tmp_path):
    part, spec = Selection(Labeled()), replace(SPEC, crop="centre")

    def encode(image):
        return {"moments": np.asarray(image)}

    fingerprint = images_fingerprint(spec, [part])
    cache = cache_moments(tmp_path / "cache", spec, [part], encode, fingerprint)
    loader = Loader(spec, [part], {}, Caches(cache))
    for n in range(6):
        batch, online = loader(n), Loader(spec, [part], {})(n)
        assert np.array_equal(batch["moments"], online["image"])
        assert np.array_equal(batch["further"]["instances"], online["further"]["instances"])


def test_a_plan_has_the_shapes_of_the_stream():
    spec = replace(SPEC, buckets=False, further=("instances", "edges"))
    columns = {"things": Vocabulary(tuple(THINGS), 3)}
    rows = RowSpec(further=spec.further, columns=columns)
    task = type("Of", (), {"streams": {"train": rows}})
    planned = training_batch(task, {"train": spec}, {}, make_mesh(devices=jax.devices()[:1]))
    shapes = {k: (v.shape, v.dtype) for k, v in planned["train"]["further"].items()}
    assert shapes["edges"] == ((12, 32, 32, 3), np.uint8)
    (batch,) = take(1, replace(spec, further=("instances",), columns=columns))
    labels, things = batch["further"]["instances"], batch["columns"]["things"]
    planned = planned["train"]["columns"]["things"]
    assert (planned.shape, planned.dtype) == (things.shape, things.dtype)
    assert shapes["instances"] == (labels.shape, labels.dtype)


def test_words_of_a_column_are_numbered():
    spec = replace(SPEC, columns={"things": Vocabulary(("pear", "car", "apple"), 3)})
    for batch in take(3, spec):
        for record, found in zip(batch["record"], batch["columns"]["things"], strict=True):
            assert found.dtype == np.int32
            assert found.tolist() == [[-1] * 3, [1, -1, -1], [1, 2, -1], [1, 2, 0]][record % 4]
    for column, most, message in (
        ("things", 2, "Record 'r3' of labeled has 3 things; the stream takes 2 at most"),
        ("width", 3, "The column 'width' of labeled contains integers; a column of text"),
        ("thing", 3, "The manifest has no column 'thing'"),
    ):
        words = tuple(THINGS)
        with pytest.raises(UserError, match=message):
            take(1, replace(SPEC, columns={column: Vocabulary(words, most)}))
    with pytest.raises(
        UserError, match=r"'r2' of labeled has 'apple' in its column things, .* 1 w"
    ):
        take(1, replace(SPEC, columns={"things": Vocabulary(("car",), 3)}))


def test_what_is_missing_is_one_sentence():
    with pytest.raises(UserError, match=r"no further image 'edges', which this stream needs"):
        take(1, replace(SPEC, further=("edges",)))
    with pytest.raises(UserError, match=r"There is no further image 'msk'; use mask, instances"):
        replace(SPEC, further=("msk",))
    lacking = Labeled(lacking=(3, 7))
    message = r"Record 'r3' of labeled has no further image 'instances' \(2 selected records lack"
    with pytest.raises(UserError, match=message):
        take(1, source=lacking)
    batches = take(4, source=lacking, select="instances != ''")
    assert not {3, 7} & {record for batch in batches for record in batch["record"].tolist()}
    damaged = Labeled()
    damaged.maps = [data[:50] for data in damaged.maps]
    with pytest.raises(UserError, match=r"The further image 'instances' of 'r\d+' of labeled"):
        take(1, source=damaged)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), [[0, 255]]),
        (Image.fromarray(np.array([[3, 7]], np.uint8)).convert("RGB"), [[3, 7]]),
        (Image.fromarray(np.array([[3, 7]], np.uint16)), [[3, 7]]),
    ],
)
def test_labels_of_other_modes(image, expected):
    whole = View((1, 2), (0, 0), (1, 2), False)
    assert prepare_further(png(image), "mask", whole).tolist() == expected


def test_palette_indices_are_labels():
    image = Image.fromarray(np.array([[2, 0], [1, 2]], np.uint8), "P")
    image.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0])
    whole = View((2, 2), (0, 0), (2, 2), False)
    assert prepare_further(png(image), "mask", whole).tolist() == [[2, 0], [1, 2]]


RED = np.zeros((6, 8, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (png(RED), "mask", "it has colors or transparency"),
        (png(np.zeros((6, 8, 4), np.uint8)), "mask", "it has colors or transparency"),
        (png(np.full((6, 8), 300, np.uint16)), "mask", "it has the label 300"),
        (png(np.zeros((8, 6), np.uint8)), "mask", "its size is 6 x 8, that of its image 8 x 6"),
        (png(np.zeros((12, 16), np.uint8)), "mask", "its size is 16 x 12"),
        (png(np.zeros((12, 12), np.uint8)), "edges", "another aspect ratio than 8 x 6"),
        (png(Image.new("CMYK", (8, 6)), "TIFF"), "mask", "its pixels have the mode CMYK"),
        (png(blocks(0, 60, 80))[:80], "edges", "truncated or damaged"),
        (b"", "mask", "not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_unusable_further_images_have_a_reason(data, name, reason):
    with pytest.raises(UserError, match=reason):
        check_further(data, name, (6, 8))


def test_a_folder_with_masks(tmp_path, capsys):
    images, data_dir = tmp_path / "images", tmp_path / "data"
    (images / "sub").mkdir(parents=True)
    labels = {}
    for i, name in enumerate(("a.png", "sub/b.png", "cut.png", "turned.png", "alone.png")):
        labels[name] = blocks(i, 40, 60)
        (images / name).write_bytes(png(gray(labels[name])))
        (images / name).with_suffix(".txt").write_text(f"thing {i}")
        if name != "alone.png":
            (images / name).with_suffix(".mask.png").write_bytes(png(labels[name]))
    (images / "cut.mask.png").write_bytes(png(labels["cut.png"])[:60])
    (images / "turned.mask.png").write_bytes(png(labels["turned.png"].T.copy()))
    (images / "sub/b.edges.png").write_bytes(png(gray(labels["sub/b.png"])[::2, ::2]))
    (images / "a.mask.tif").write_bytes(png(labels["a.png"], "TIFF"))
    (images / "orphan.mask.png").write_bytes(png(labels["a.png"]))
    command = ["data", "build", "folder/mine", f"--path={images}", f"--data_dir={data_dir}"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "mask: of 2 images" in said.out and "edges: of 1 images" in said.out
    assert "2 files cannot be read and are left out (cut.mask.png, turned.mask.png;" in said.err

    def listed(name):
        lines = (data_dir / "folder/mine/1.0.0" / name).read_text().splitlines()
        return {row["file_name"]: row.get("reason") for row in map(json.loads, lines)}

    reasons = listed("damaged.jsonl")
    assert reasons["turned.mask.png"] == "its size is 40 x 60, that of its image 60 x 40"
    assert "truncated" in reasons["cut.mask.png"] and len(reasons) == 2
    assert listed("unused.jsonl") == {
        name: "it is a mask by its name, but no image, or another mask, belongs to it"
        for name in ("a.mask.tif", "orphan.mask.png")
    }
    source = open_source("folder/mine", data_dir)
    keys = source.manifest.column("key").tolist()
    assert keys == ["a.png", "alone.png", "cut.png", "sub/b.png", "turned.png"]
    assert source.further == ["mask", "edges"]
    for key in ("a.png", "sub/b.png"):
        stored = (images / key).with_suffix(".mask.png").read_bytes()
        assert source.read(keys.index(key), "mask") == stored
    assert source.read(keys.index("cut.png"), "mask") == b""
    assert source.manifest.select("mask != ''").tolist() == [0, 3]
    spec = StreamSpec(batch_size=2, side=32, sequential=True, further=("mask",))
    (batch,) = take(1, spec, source, "mask != ''")
    for row in range(2):
        assert_aligned(batch["image"][row], batch["further"]["mask"][row])
    with pytest.raises(UserError, match=r"Record 'alone.png' of folder/mine has no further image"):
        take(1, spec, source)

    # A config's streams, as the task needs them; each entry of the mixture by its condition.
    config = read(f"{runs.ROOT}/configs/judge.py:size=test")
    mixture = dict(mine=config_source("folder/mine", select="mask != ''"))
    config.data.update(dict(data_dir=str(data_dir), image_size=32, flip=True))
    with config.unlocked():
        config.data.train, config.data.validation = mixture, dict(kept=mixture)
    task, mesh = SimpleNamespace(streams={"train": RowSpec(further=("mask",))}), make_mesh()
    config.train.batch_size = 2 * mesh.size
    for stream in (
        training_stream(config, task, {}, mesh)(0),
        validation_streams(config, task, {}, mesh)["kept"](),
    ):
        rows = next(stream)["train"]
        stream.close()
        for row in range(2):
            assert_aligned(rows["image"][row], rows["further"]["mask"][row])

    out = tmp_path / "grid.png"
    shown = ["data", "show", "folder/mine", f"--data_dir={data_dir}", f"--out={out}"]
    assert main(shown) == 0
    with Image.open(out) as grid:
        assert grid.width > 2 * 3 * 128  # two columns at least of an image and two further ones


def test_names_of_images_with_dots_stay_images(tmp_path):
    for name in ("a.png", "a.large.png", "mask.png", "b.mask.png", "b.webp"):
        (tmp_path / name).write_bytes(png(np.zeros((4, 4), np.uint8)))
    source = build("folder/dots", tmp_path / "data", path=tmp_path)
    keys = source.manifest.column("key").tolist()
    assert keys == ["a.large.png", "a.png", "b.webp", "mask.png"]
    assert source.manifest.select("mask != ''").tolist() == [2]
    assert set(FURTHER) >= set(source.further) == {"mask"}
    with pytest.raises(UserError, match="has no split 'edges': build the data set again"):
        source.read(0, "edges")
