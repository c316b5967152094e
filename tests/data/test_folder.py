"""Users' own images: captions from every kind of file, and every kind of bad file named."""

import errno
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath
from PIL import Image

from emu_jax.data import decode
from emu_jax.data.builder import build
from emu_jax.data.captions import Columns
from emu_jax.data.contents import read_contents
from emu_jax.errors import UserError


def encode(width=8, height=6, kind="PNG", **kwargs):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    kinds = {"a.png": "PNG", "sub/b.JPG": "JPEG", "sub/c.webp": "WEBP", ".hidden/d.png": "PNG"}
    for name, kind in kinds.items():
        (root / name).write_bytes(encode(kind=kind))
    return root


def captions_in(root):
    """Images with captions."""
    captions = read_contents(root).captions
    return {name: texts for name, texts in captions.items() if texts}


def test_sidecars(folder):
    (folder / "a.txt").write_text("a fox\n\n  a red   fox \r\na fox\n")
    (folder / "sub/b.Caption").write_text("a cat")
    assert list(read_contents(folder).captions) == ["a.png", "sub/b.JPG", "sub/c.webp"]
    assert captions_in(folder) == EXPECTED


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
    assert captions_in(folder) == EXPECTED


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables_of_an_imagefolder(folder, kind):
    rows = [{"file_name": "b.JPG", "text": "a cat"}, {"file_name": "c.webp", "text": None}]
    table = folder / f"sub/metadata.{kind}"
    if kind == "jsonl":
        _jsonl(table, rows)
    elif kind == "csv":
        table.write_text("file_name,text\nb.JPG,a cat\nc.webp,\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    (folder / "sub/other.csv").write_text("x")
    (folder / "a.txt").write_text("a fox")
    (folder / "sub/b.txt").write_text("not used")
    (folder / "readme.txt").write_text("not used")
    contents = read_contents(folder)
    assert contents.captions == {"a.png": ["a fox"], "sub/b.JPG": ["a cat"], "sub/c.webp": []}
    assert {name: reason.split()[0] for name, reason in contents.unused.items()} == {
        "readme.txt": "no",
        "sub/b.txt": "a",
        "sub/other.csv": "below",
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_two_columns_of_captions(folder, kind, tmp_path):
    """The form of SURD; an image that the table lacks has neither."""
    row = {"file_name": "a.png", "text": "a fox", "prompt": " exactly one  fox, sharp"}
    table = folder / f"metadata.{kind}"
    if kind == "jsonl":
        _jsonl(table, [row])
    elif kind == "csv":
        table.write_text('file_name,text,prompt\na.png,a fox,"exactly one fox, sharp"\n')
    else:
        pq.write_table(pa.Table.from_pylist([row]), table)
    data = tmp_path / "data"
    source = build("folder/x", data, path=folder, columns=Columns(further=("prompt",)))
    found = zip(*(source.manifest.column(name) for name in ("captions", "prompt")), strict=True)
    assert list(found) == [(["a fox"], ["exactly one fox, sharp"]), ([], []), ([], [])]
    if kind != "jsonl":
        return
    other = build("folder/y", data, path=folder, columns=Columns("prompt"))
    assert other.manifest.column("captions")[0] == ["exactly one fox, sharp"]
    assert build("folder/y", data, path=folder, columns=Columns("prompt")).directory == (
        other.directory
    )
    for name, wanted, words in (
        ("z", Columns(further=("longer",)), "line 1 has no column 'longer'.* are needed"),
        ("z", Columns("short"), "has no column 'short'.*file_name and short are needed"),
        ("z", Columns(further=("sha256",)), "cannot be called 'sha256'"),
        ("y", Columns("text"), "has the captions of prompt, not of text.*--force"),
        ("x", Columns("prompt"), "has the captions of the usual column, not of prompt"),
        ("y", Columns(further=("prompt",)), "built without the column 'prompt'.*--force"),
    ):
        with pytest.raises(UserError, match=words):
            build(f"folder/{name}", data, path=folder, columns=wanted)


def test_a_missing_caption_of_a_table_is_none(folder):
    rows = [{"file_name": "a.png", "text": float("nan"), "extra": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    assert captions_in(folder) == {}
    (folder / "x.parquet").unlink()
    _jsonl(folder / "x.jsonl", [{"file_name": "a.png", "text": [float("nan"), None, "a fox"]}])
    assert captions_in(folder) == {"a.png": ["a fox"]}


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x1c"])
def test_only_line_feeds_end_a_line(folder, mark):
    (folder / "a.txt").write_bytes(f"\ufeffa{mark}fox\r\na red fox".encode())
    assert captions_in(folder) == {"a.png": ["a fox", "a red fox"]}
    row = json.dumps({"file_name": "a.png", "text": f"one{mark}two"}, ensure_ascii=False)
    (folder / "x.jsonl").write_bytes(f"{row}\r\n{row}".encode())
    assert captions_in(folder) == {"a.png": ["one two"]}


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"file_name": "z.png", "caption": "x"}', r"line 3 names z\.png, which is not a file"),
        ('{"file_name": "../images/a.png", "caption": "x"}', "line 3: file_name is '../images/a"),
        ('{"file_name": "a.png\\u0000", "caption": "x"}', "line 3 names a.png"),
        ('{"file_name": "\\ud800", "caption": "x"}', "line 3 names"),
        ('{"file_name": null, "caption": "x"}', "line 3: file_name is None"),
        (
            '{"file_name": "a.png", "words": "x"}',
            "line 3 has no column 'captions': its columns are",
        ),
        ('{"name": "a.png", "caption": "x"}', "line 3 has no column 'file_name'"),
        (
            '{"file_name": "a.png", "caption": 5}',
            "line 3: the caption '5' is of type int; only text is allowed",
        ),
        ('{"file_name": "a.png", "caption": "\\ud800"}', "line 3: .* is not valid Unicode"),
        ('{"file_name": ', "line 3 cannot be read as JSON: Expecting value, column 15"),
        ("[1]", "line 3 .* is not an object"),
        ("[" * 100_000, "line 3 cannot be read as JSON: maximum recursion"),
        ("9" * 5000, "line 3 cannot be read as JSON: Exceeds the limit"),
    ],
    ids=range(13),
)
def test_bad_lines_of_jsonl(folder, text, said):
    row = '{"file_name": "a.png", "caption": "a fox"}'
    (folder / "captions.jsonl").write_text(f"{row}\n\n{text}\n{row}")
    with pytest.raises(UserError, match=rf"captions\.jsonl, {said}") as error:
        read_contents(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("a.png,a fox, red", "line 2 has 3 value\\(s\\) for 2 columns"),
        ("a.png", "line 2 has 1 value\\(s\\) for 2 columns"),
        ('a.png,"a fox', "line 2 cannot be read as CSV: unexpected end of data"),
        ('a.png,"a "fox', "line 2 cannot be read as CSV"),
        ("a.png," + "x" * 200_000, "line 2 cannot be read as CSV: field larger"),
    ],
)
def test_bad_lines_of_csv(folder, text, said):
    (folder / "captions.csv").write_text(f"file_name,text\n{text}")
    with pytest.raises(UserError, match=rf"captions\.csv, {said}"):
        read_contents(folder)


def test_a_column_that_is_named_twice(folder):
    (folder / "captions.csv").write_text("file_name,text,text\na.png,x,y")
    with pytest.raises(UserError, match="line 1 names a column twice"):
        read_contents(folder)


@pytest.mark.parametrize("name", ["a.txt", "x.jsonl", "x.csv"])
def test_text_that_is_not_utf8(folder, name):
    (folder / name).write_bytes("file_name,text\nein Käse\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}, line (1|2) is not UTF-8 text \(byte 0xe4\)"):
        read_contents(folder)


def test_damaged_parquet_is_one_sentence(folder):
    rows = [{"file_name": "a.png", "text": f"fox {i}", "more": i} for i in range(50)]
    path = folder / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(200):
        data = bytearray(whole)
        if trial % 2:
            for place in random.integers(len(data), size=4):
                data[place] = random.integers(256)
        else:
            del data[random.integers(len(data)) :]
        path.write_bytes(data)
        try:
            read_contents(folder)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100


def test_two_tables(folder):
    (folder / "a.jsonl").touch()
    (folder / "b.csv").touch()
    with pytest.raises(UserError, match=r"several tables \(a\.jsonl, b\.csv\)"):
        read_contents(folder)


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

    reasons = listed(tmp_path / "data", "damaged.jsonl")
    assert sorted(reasons) == ["cut.png", "empty.webp", "huge.png", "text.jpg"]
    assert "truncated" in reasons["cut.png"]
    assert "101 x 100" in reasons["huge.png"]
    assert "not an image" in reasons["text.jpg"] and "not an image" in reasons["empty.webp"]
    assert sorted(listed(tmp_path / "data", "uncaptioned.jsonl")) == [
        "a.png",
        "sub/b.JPG",
        "sub/c.webp",
    ]


def listed(data_dir, name):
    lines = (data_dir / "folder/mine/1.0.0" / name).read_text().splitlines()
    return {row["file_name"]: row.get("reason") for row in map(json.loads, lines)}


def test_no_single_file_ends_a_build(folder, tmp_path, capsys):
    data = tmp_path / "data"
    (folder / "exif.png").write_bytes(encode(exif=b"Exif\0\0no TIFF header"))
    (folder / "exif.webp").write_bytes(encode(kind="WEBP", exif=b"Exif\0\0no TIFF header"))
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "named.png").mkdir()
    (folder / "named.png/inside.png").write_bytes(encode())
    (folder / "sub/up").symlink_to(folder)
    (folder / "also_sub").symlink_to(folder / "sub")
    name = b"caf\xe9.png"
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(encode())
    source = build("folder/mine", data, path=folder)
    keys = source.manifest.column("key").tolist()
    assert keys == ["a.png", "named.png/inside.png", "sub/b.JPG", "sub/c.webp"]
    assert listed(data, "damaged.jsonl") == {
        "caf\\xe9.png": "its name is not UTF-8",
        "dangling.png": "cannot be read: No such file or directory",
        "exif.png": "truncated or damaged image: not a TIFF file (header b'no TIFF ' not valid)",
        "exif.webp": "truncated or damaged image: not a TIFF file (header b'no TIFF ' not valid)",
        "itself.png": "cannot be read: Too many levels of symbolic links",
        "pipe.png": "not a regular file",
    }
    said = capsys.readouterr().err
    assert "6 files cannot be read and are left out (caf" in said and "damaged.jsonl" in said


def test_an_unreadable_directory_is_named(folder, tmp_path, monkeypatch):
    inner = type(epath.Path(tmp_path)).iterdir

    def iterdir(self):
        if self.name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return inner(self)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "iterdir", iterdir)
    assert len(build("folder/mine", tmp_path / "data", path=folder)) == 1
    reason = "cannot be read: Permission denied"
    assert listed(tmp_path / "data", "damaged.jsonl") == {"sub": reason}


def test_what_is_not_used_is_counted_and_named(folder, tmp_path, capsys):
    for name in ("x.heic", "sub/y.HEIC", "notes.md", "a.json", "lonely.caption"):
        (folder / name).write_text("x")
    build("folder/mine", tmp_path / "data", path=folder)
    said = capsys.readouterr().err
    assert "5 files are not used: 2 .heic, 1 .json, 1 .caption, 1 .md (a.json, lonely" in said
    assert "3 files have no caption (a.png, sub/b.JPG, sub/c.webp; see uncaptioned.jsonl)" in said
    reasons = listed(tmp_path / "data", "unused.jsonl")
    assert sorted(reasons) == ["a.json", "lonely.caption", "notes.md", "sub/y.HEIC", "x.heic"]
    assert reasons["lonely.caption"] == "no image has this name"


def test_nothing_to_build_leaves_nothing(tmp_path):
    data, images = tmp_path / "new/data", tmp_path / "images"
    images.mkdir()
    with pytest.raises(UserError, match="--path=DIR"):
        build("folder/mine", data)
    with pytest.raises(UserError, match="is not a directory"):
        build("folder/mine", data, path=tmp_path / "nowhere")
    (images / "x.heic").write_text("nothing")
    with pytest.raises(UserError, match=r"There is no image in .* \(but 1 \.heic\)"):
        build("folder/mine", data, path=images)
    (images / "x.png").write_text("nothing")
    with pytest.raises(UserError, match=r"None of the 1 images .* x\.png: not an image"):
        build("folder/mine", data, path=images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    data.mkdir(parents=True)
    with pytest.raises(UserError, match=r"None of the 1 images"):
        build("folder/mine", data, path=images)
    assert not list(data.iterdir())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_a_sentence(kind):
    data = encode(40, 30, kind)
    assert decode.open_image(data).size == (40, 30)
    for length in range(0, len(data) * 2 // 3, max(1, len(data) // 40)):
        with pytest.raises(UserError):
            decode.open_image(data[:length])
