"""Images of folders and data sets by name, and their texts from tables, columns and sidecars."""

import json

import pytest
from etils import epath

from emu_jax.data.collection import (
    PROMPT_COLUMNS,
    Collection,
    both,
    files_of,
    first,
    longest,
    read_texts,
    shard_file,
)
from emu_jax.errors import UserError


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder(pictures, tmp_path):
    images = Collection(str(pictures / "source"), str(tmp_path))
    assert images.names[:2] == ["00.png", "01.png"] and len(images.names) == 24
    assert images.read("01.png") == (pictures / "source" / "01.png").read_bytes()
    assert images.texts("captions", first)["01.png"] == "a green disc"
    own = {"file_name": "01.png", "prompt": ["x", " long  one "], "text": "short"}
    write(tmp_path / "own.jsonl", own)
    table = f"{tmp_path}/own.jsonl"
    assert images.texts(table, longest, PROMPT_COLUMNS) == {"01.png": "long one"}
    assert images.texts(table, longest) == {"01.png": "short"}
    with pytest.raises(UserError, match="has no column 'simple'; name a table"):
        images.texts("simple", first)
    images.refuse_inside(tmp_path)
    with pytest.raises(UserError, match="the images' folder; use another"):
        images.refuse_inside(pictures / "other" / ".." / "source" / "captions.jsonl")
    with pytest.raises(UserError, match="is for data sets"):
        Collection(str(pictures / "source"), str(tmp_path), "part == train")


def test_a_data_set(pictures):
    images = Collection("folder/tiny", str(pictures), "key == 03.png|05.png")
    assert images.names == ["03.png", "05.png"]
    assert images.read("05.png") == (pictures / "source" / "05.png").read_bytes()
    assert images.texts("captions", longest) == {
        "03.png": "a orange disc",
        "05.png": "a black disc",
    }
    assert images.texts("sha256", first).keys() == {"03.png", "05.png"}
    with pytest.raises(UserError, match="There is no folder nowhere"):
        Collection("nowhere", str(pictures))


def test_images_without_both_texts_are_named():
    found = both({"a": "x", "b": "y"}, {"a": "z", "c": "w"}, ["a", "b", "c"])
    reasons = {"b": "it has no simple caption", "c": "it has no complex prompt"}
    assert found == (["a"], reasons)


def test_files_of_shards(tmp_path):
    path = epath.Path(tmp_path / "captions.jsonl")
    assert shard_file(path, (0, 1)) == path
    with pytest.raises(UserError, match="and there are no shards of it"):
        files_of(path)
    for i in (0, 2):
        write(shard_file(path, (i, 3)), {"file_name": f"{i}", "text": f"text {i}"})
    with pytest.raises(UserError, match=r"captions\.2-of-3\.jsonl is missing"):
        read_texts(path)
    write(tmp_path / "captions.2-of-3.jsonl", {"file_name": "1", "text": None})
    assert read_texts(path) == {"0": ["text 0"], "1": [], "2": ["text 2"]}
    with pytest.raises(UserError, match="a row needs file_name, a text, and one of prompt"):
        read_texts(path, ("prompt",))
    write(tmp_path / "captions.1-of-2.jsonl")
    with pytest.raises(UserError, match="shards of several numbers"):
        read_texts(path)
