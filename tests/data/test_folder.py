"""Users' own pictures: captions from every kind of file, and every kind of bad file named."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emu_jax.data import decode
from emu_jax.data.builder import build
from emu_jax.data.folder import find_pictures, read_captions
from emu_jax.errors import UserError


def encode(width=8, height=6, kind="PNG", **kwargs):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    kinds = {"a.png": "PNG", "sub/b.JPG": "JPEG", "sub/c.webp": "WEBP", ".hidden/d.png": "PNG"}
    for name, kind in kinds.items():
        (root / name).write_bytes(encode(kind=kind))
    return root


def test_sidecars(folder):
    (folder / "a.txt").write_text("a fox\n\n  a red   fox \na fox\n")
    names = find_pictures(folder)
    assert names == ["a.png", "sub/b.JPG", "sub/c.webp"]
    assert read_captions(folder, names) == {"a.png": ["a fox", "a red fox"]}


EXPECTED = {"a.png": ["a fox", "a red fox"], "sub/b.JPG": ["a cat"]}


def _jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "rows"])
def test_tables(folder, kind):
    lists = [
        {"file_name": "a.png", "captions": ["a fox", "a red fox"]},
        {"file_name": "sub/b.JPG", "captions": ["a cat"]},
    ]
    if kind == "jsonl":
        _jsonl(folder / "metadata.jsonl", lists)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(lists), folder / "captions.parquet")
    elif kind == "csv":
        (folder / "c.csv").write_text(
            '\ufefffile_name,text\na.png,a fox\nsub/b.JPG,a cat\na.png,"a red fox"\n'
        )
    else:
        rows = [("a.png", "a fox"), ("a.png", "a red fox"), ("sub/b.JPG", "a cat")]
        _jsonl(folder / "x.jsonl", [{"file_name": f, "caption": c} for f, c in rows])
    assert read_captions(folder, find_pictures(folder)) == EXPECTED


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"file_name": "z.png", "caption": "x"}', r"row 1 names z\.png"),
        ('{"file_name": "../pictures/a.png", "caption": "x"}', "row 1 names"),
        ('{"file_name": "a.png", "words": "x"}', "no column 'captions'; it has file_name, words"),
        ('{"name": "a.png", "caption": "x"}', "no column 'file_name'"),
        ('{"file_name": ', "cannot be read as jsonl"),
        ("[1]", "is no object"),
    ],
)
def test_bad_tables(folder, text, said):
    (folder / "captions.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_captions(folder, find_pictures(folder))


def test_two_tables(folder):
    (folder / "a.jsonl").touch()
    (folder / "b.csv").touch()
    with pytest.raises(UserError, match=r"several tables \(a\.jsonl, b\.csv\)"):
        read_captions(folder, [])


def test_build_leaves_out_and_names_what_is_damaged(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    (folder / "turned.jpg").write_bytes(encode(30, 20, "JPEG", exif=exif))
    (folder / "turned.txt").write_text("a thing\nanother name of it")
    (folder / "cut.png").write_bytes(encode(64, 64)[:2000])
    (folder / "huge.png").write_bytes(encode(101, 100))
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.webp").touch()
    source = build("folder/mine", tmp_path / "data", path=folder)

    manifest = source.manifest
    assert manifest.column("key").tolist() == ["a.png", "sub/b.JPG", "sub/c.webp", "turned.jpg"]
    assert (manifest.column("width")[3], manifest.column("height")[3]) == (20, 30)
    assert manifest.column("captions")[3] == ["a thing", "another name of it"]
    assert manifest.column("captions")[0] == []
    assert source.read(3) == (folder / "turned.jpg").read_bytes()

    def listed(name):
        lines = (tmp_path / "data/folder/mine/1.0.0" / name).read_text().splitlines()
        return {row.pop("file_name"): row for row in map(json.loads, lines)}

    reasons = {name: row["reason"] for name, row in listed("damaged.jsonl").items()}
    assert sorted(reasons) == ["cut.png", "empty.webp", "huge.png", "text.jpg"]
    assert "truncated" in reasons["cut.png"]
    assert "101 x 100" in reasons["huge.png"]
    assert "not an image" in reasons["text.jpg"] and "not an image" in reasons["empty.webp"]
    assert sorted(listed("uncaptioned.jsonl")) == ["a.png", "sub/b.JPG", "sub/c.webp"]


def test_nothing_to_build(tmp_path):
    with pytest.raises(UserError, match="--path=DIR"):
        build("folder/mine", tmp_path)
    with pytest.raises(UserError, match="there is no picture"):
        build("folder/mine", tmp_path, path=tmp_path)
    (tmp_path / "x.png").write_text("nothing")
    with pytest.raises(UserError, match=r"none of the 1 pictures .* x\.png: not an image"):
        build("folder/mine", tmp_path, path=tmp_path)
    assert not list((tmp_path / "folder").rglob("manifest.parquet"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_a_sentence(kind):
    data = encode(40, 30, kind)
    assert decode.open_image(data).size == (40, 30)
    for length in range(0, len(data) * 2 // 3, max(1, len(data) // 40)):
        with pytest.raises(UserError):
            decode.open_image(data[:length])
