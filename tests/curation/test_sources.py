"""Sources of a pool: every form is read shard by shard, and what is damaged is named."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emu_jax.curation import sources
from emu_jax.curation.sources import DataSet, Folder, Parquet, WebDataset
from emu_jax.errors import UserError


def png(color="red", size=(8, 6)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))


def read(source):
    return [[item for _, item in source.read(shard)] for shard in range(len(source.shards))]


@pytest.fixture
def tars(tmp_path):
    about = {"caption": "by  hand", "alt": ["one", "two", "one"], "likes": "12", "url": "u" * 5}
    write_tar(
        tmp_path / "00000.tar",
        [
            ("a/1.jpg", png("red")),
            ("a/1.txt", b"found on the web\n"),
            ("a/1.json", json.dumps(about).encode()),
            ("../../2.png", png("green")),  # a name is a key and no path
            ("3.txt", b"no image"),
            ("4.json", b"{"),
            ("4.jpg", png("blue")),
            ("5.jpg", None),
            ("5.txt", b"a link is no image"),
        ],
    )
    write_tar(tmp_path / "00001.tar", [(f"{i}.jpg", png(size=(200, 200))) for i in range(4)])
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[:2800])
    (tmp_path / "notes.md").write_text("not a shard")
    return tmp_path


def test_tars_are_read_as_samples(tars, monkeypatch):
    (tars / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tars / "a" / "b")
    captions = ("caption", "alt", "txt")
    source = WebDataset(str(tars), captions, numbers=("likes",), texts=("url", "missing"))
    first, second = read(source)
    assert [item.key for item in first] == [f"00000/{n}" for n in ("a/1", "../../2", "3", "4", "5")]
    one = first[0]
    assert one.captions == ["by hand", "one", "two", "found on the web"] and one.data == png("red")
    assert one.columns == {"likes": 12.0, "url": "uuuuu", "missing": None}
    assert first[1].data == png("green") and not first[1].damaged
    assert "no image" in first[2].damaged and "JSON" in first[3].damaged
    assert "no image, only .txt" in first[4].damaged
    assert [bool(item.damaged) for item in second] == [False] * (len(second) - 1) + [True]
    assert "damaged from here on" in second[-1].damaged
    assert source.shards == ["00000.tar 10240", "00001.tar 2800"]
    pattern = WebDataset(str(tars / "*1.tar"))
    assert pattern.shards == ["00001.tar 2800"] and pattern.identity != source.identity
    assert list(tars.rglob("*.png")) == []  # nothing is extracted


def test_rows_of_a_shard_are_read_alone(tars):
    source = WebDataset(str(tars))
    everything = dict(source.read(0))
    assert dict(source.read(0, frozenset([0, 3]))) == {i: everything[i] for i in (0, 3)}


def test_a_member_that_is_too_large_is_not_read(tars, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 50)
    (item, *_), _ = read(WebDataset(str(tars)))
    assert item.damaged.startswith("too large") and not item.data


def test_parquet_has_bytes_or_paths_inside_its_folder(tmp_path):
    (tmp_path / "own.png").write_bytes(png("green"))
    outside = tmp_path.parent / f"{tmp_path.name}_outside.png"
    outside.write_bytes(png("blue"))
    (tmp_path / "link.png").symlink_to(outside)
    images = [
        {"bytes": png("red"), "path": None},
        {"bytes": None, "path": "own.png"},
        {"bytes": None, "path": f"../{outside.name}"},
        {"bytes": None, "path": str(outside)},
        {"bytes": None, "path": "link.png"},
        None,
    ]
    table = pa.table({"image": images, "text": ["t"] * 6, "likes": [None, 1, 2, 3, 4, 5]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = Parquet(str(tmp_path), numbers=("likes",))
    (items,) = read(source)
    assert [item.data for item in items] == [png("red"), png("green"), b"", b"", b"", b""]
    assert ["no path inside" in item.damaged for item in items[2:4]] == [True, True]
    assert "a link out of" in items[4].damaged and "holds no image" in items[5].damaged
    assert items[0].columns == {"likes": None} and items[1].captions == ["t"]
    assert dict(source.read(0, {1})) == {1: items[1]}
    with pytest.raises(UserError, match="has no column 'jpg'"):
        read(Parquet(str(tmp_path), "jpg"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    ((item,),) = read(source)
    assert "the table is damaged" in item.damaged


def test_a_folder_is_read_a_folder_at_a_time(tmp_path):
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.png").write_bytes(png())
    (tmp_path / "top.jpg").write_bytes(png("blue"))
    (tmp_path / "top.txt").write_text("one\ntwo\n")
    rows = [{"file_name": f"{i}.png", "caption": f"c{i}", "likes": i} for i in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in" / "metadata.jsonl").write_text(lines)
    source = Folder(str(tmp_path), shard_size=2, numbers=("likes",))
    assert [name.split()[0] for name in source.shards] == [".#0", "in#0", "in#1", "in#2"]
    top, *inner = read(source)
    assert top[0].captions == ["one", "two"] and top[0].key == "top.jpg"
    assert [i.captions for part in inner for i in part] == [["c0"], ["c1"], ["c2"], ["c3"], []]
    assert [i.columns["likes"] for part in inner for i in part] == [0, 1, 2, 3, None]
    (tmp_path / "in" / "9.png").write_bytes(png())  # scores of before are of other images
    assert Folder(str(tmp_path), shard_size=2).shards[:3] == source.shards[:3]
    assert Folder(str(tmp_path), shard_size=2).shards[3] != source.shards[3]
    with pytest.raises(UserError, match="There is no folder"):
        Folder(str(tmp_path / "none"))


def test_a_data_set_is_a_source(pictures):
    source = DataSet("folder/tiny", str(pictures), "key != 00.png", 10, texts=("part",))
    shards = read(source)
    assert list(map(len, shards)) == [10, 10, 3]
    first = shards[0][0]
    assert (first.key, first.captions) == ("01.png", ["a green disc", "green ball"])
    assert first.columns["part"] in ("train", "held_out")
    assert first.data == (pictures / "source" / "01.png").read_bytes()
    with pytest.raises(UserError, match="has no column 'recall_kept'"):
        DataSet("folder/tiny", str(pictures), numbers=("recall_kept",))


def test_a_column_cannot_have_the_name_of_another():
    with pytest.raises(UserError, match="'width' cannot be kept"):
        WebDataset("x", numbers=("width",))
