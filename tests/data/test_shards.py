"""A data set written in shards by Beam equals the one that a single process writes."""

import json
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.core.example_serializer import tf_example_pb2

from emu_jax.data import folder, manifest_shards, shards
from emu_jax.data.builder import build
from emu_jax.data.captions import Columns
from emu_jax.data.manifest import Manifest
from emu_jax.data.mixture import Captions, RecordCaptions, Selection
from emu_jax.data.pipeline import StreamSpec, make_stream
from emu_jax.data.source import find, list_sources
from emu_jax.errors import UserError

SPEC = StreamSpec(batch_size=6, side=16, bucket_step=4, buckets=True, further=("mask",), seed=3)
DAMAGED = {"04.png", "05.png", "06.png", "07.png", "13.png"}  # all of a shard, and one more


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rows = []
    for i in range(30):
        name = f"{i:02}.png"
        size = ((24, 16), (16, 16), (16, 24))[i % 3]
        Image.new("RGB", size, (i * 8, 0, 0)).save(root / name)
        Image.new("L", size, i).save(root / f"{i:02}.mask.png")
        if name in DAMAGED:
            (root / name).write_bytes(b"nothing")
        captions = [f"image {i} {j}" for j in range(i % 3)]
        rows.append({"file_name": name, "captions": captions, "long": [f"a long text of {i}"]})
    (root / "02.mask.png").write_bytes(b"nothing")
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def made(images, data_dir):
    return build("folder/x", data_dir, path=images, columns=Columns(further=("long",)))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return made(images, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(images, tmp_path_factory):
    """Eight shards of records, one of them without an image, and three of the manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "SHARD", 4)
        patch.setattr(shards, "ROWS", 9)
        return made(images, tmp_path_factory.mktemp("sharded"))


def batches(source, **more):
    spec = StreamSpec(**{**vars(SPEC), **more})
    selections = [Selection(source, select="mask != '' and part != held_out")]
    with closing(make_stream(spec, selections, {"n": lengths})) as stream:
        return list(islice(stream, 10))


def lengths(texts):
    return {"ids": np.array([[hash(text)] for text in texts])}


def test_the_records_and_rows_are_the_same(whole, sharded):
    one, several = whole.manifest, sharded.manifest
    assert isinstance(several, manifest_shards.ShardedManifest)
    assert len(several) == len(one) == 25 and len(several.starts) == 3
    assert one.columns == several.columns and one.about == several.about
    for name in one.columns:
        assert one.column(name).tolist() == several.column(name).tolist(), name
        assert [several.value(name, i) for i in (0, 9, 24)] == one.column(name)[[0, 9, 24]].tolist()
    for condition in ("", "part == held_out", "width > 16 and mask != ''", "key == '02.png'"):
        assert several.select(condition).tolist() == one.select(condition).tolist()
    with pytest.raises(UserError, match="has no column 'prat'"):
        several.select("prat == x")
    for i in range(25):
        assert whole.read(i) == sharded.read(i) and whole.read(i, "mask") == sharded.read(i, "mask")
        assert sharded.captions(i) == one.column("captions")[i]
    for name in ("damaged.jsonl", "uncaptioned.jsonl"):
        texts = [Path(source.directory, name).read_text() for source in (whole, sharded)]
        assert sorted(texts[0].splitlines()) == sorted(texts[1].splitlines()) and texts[0]


def test_bytes_depend_on_the_records_alone(sharded):
    """Not on the process that wrote them, whose hash tables order the features of a record."""
    (path, *_) = sorted(Path(sharded.directory).glob("*-train.array_record-*"))
    reader = ArrayRecordReader(str(path))
    for record in reader.read_all():
        parsed = tf_example_pb2.Example.FromString(record)
        assert parsed.SerializeToString(deterministic=True) == record


def test_the_batches_are_the_same(whole, sharded):
    """Captions come with the records of the sharded one."""
    assert RecordCaptions.wanted([Selection(sharded)]) and not RecordCaptions.wanted(
        [Selection(whole)]
    )
    for more in ({}, {"sequential": True}):
        for one, other in zip(batches(whole, **more), batches(sharded, **more), strict=True):
            assert np.array_equal(one["tokens"]["n"]["ids"], other["tokens"]["n"]["ids"])
            for name in ("image", "sizes", "record"):
                assert np.array_equal(one[name], other[name])
            assert np.array_equal(one["further"]["mask"], other["further"]["mask"])
    texts = [Captions([Selection(source, captions="long")]).texts for source in (whole, sharded)]
    assert texts[0] == texts[1] and len(texts[0]) == 26


def test_a_large_set_has_the_index_of_a_small_one(whole, sharded, tmp_path, monkeypatch):
    from emu_jax.data import index

    shapes, selection = SPEC.shapes(), Selection(whole, select="width >= 16 and part != held_out")
    expected = index.open_members(selection, shapes)
    monkeypatch.setattr(index, "IN_MEMORY", 0)
    monkeypatch.setattr("emu_jax.data.buckets._LONGEST", 64)
    copy = type(sharded)("folder/x", shutil.copytree(sharded.directory, tmp_path / "copy"))
    selection = Selection(copy, select=selection.select)
    found = index.open_members(selection, shapes)
    folders = list((tmp_path / "copy/index").iterdir())
    assert len(folders) == 1 and not folders[0].name.startswith(".")
    monkeypatch.setattr(index, "_fill", lambda *_, **__: pytest.fail("computed again"))
    for members in (found, index.open_members(selection, shapes)):
        for k in range(len(shapes)):
            assert members.all(k).tolist() == expected.all(k).tolist()
    with pytest.raises(UserError, match="No record of folder/x matches 'width == 1'"):
        monkeypatch.undo()
        index.open_members(Selection(copy, select="width == 1"), shapes)


def test_small_shards_make_the_manifest_of_one(images, whole, tmp_path, monkeypatch):
    """Of as many rows as small data sets have, also without Beam."""
    monkeypatch.setattr(folder, "SHARD", 11)
    monkeypatch.setattr(shards.importlib.util, "find_spec", lambda name: None)
    source = made(images, tmp_path)
    assert source.manifest.fingerprint == whole.manifest.fingerprint
    files = {path.name for path in find("folder/x", tmp_path).iterdir()}
    assert {name for name in files if "array_record" in name} == {
        f"folder-{split}.array_record-0000{i}-of-00003"
        for split in ("train", "mask")
        for i in range(3)
    }
    assert not files & {"work", "lists"}
    assert [source.name for source in list_sources(tmp_path)] == ["folder/x"]


def test_what_is_written_is_not_written_again(tmp_path):
    """Each call leaves a file, since Beam pickles what it runs."""

    def work(i):
        calls = sorted(tmp_path.glob(f"call-{i}-*"))
        (tmp_path / f"call-{i}-{len(calls)}").touch()
        if i == 2 and not calls:
            raise OSError("the disk is full")
        return i * i

    with pytest.raises(UserError, match="the disk is full"):
        shards.each(work, 3, tmp_path / "squares", "squares")
    assert shards.each(work, 3, tmp_path / "squares", "squares") == [0, 1, 4]
    calls = sorted(path.name for path in tmp_path.glob("call-*"))
    assert calls == ["call-0-0", "call-1-0", "call-2-0", "call-2-1"]


def test_damage_of_a_sharded_manifest_is_one_sentence(sharded, tmp_path):
    copy = Path(shutil.copytree(sharded.directory, tmp_path / "copy"))
    path = copy / "manifest-00001-of-00003.parquet"
    content, other = path.read_bytes(), (copy / "manifest-00002-of-00003.parquet").read_bytes()
    for damaged in (content[:-30], b"", other):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read .*build the data set again"):
            Manifest.read(copy).column("key")
    (copy / "manifest.json").write_text('[[1, "../x"], 3]')
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        Manifest.read(copy)
