"""Selection against plain Python over the same rows; what is read equals what was written."""

import numpy as np
import pyarrow as pa
import pytest

from emu_jax.data.manifest import Manifest
from emu_jax.errors import UserError

OWN = {"part": pa.string(), "needle": pa.int32()}


def rows(n=40):
    return [
        {
            "key": f"k{i}",
            "width": 64 + i,
            "height": 64,
            "sha256": f"{i:064x}",
            "captions": [f"a thing {j}" for j in range(i % 3)],
            "source": "here",
            "part": ("tuned", "kept", "held_out")[i % 3],
            "needle": i // 3 if i % 3 == 0 else -1,
        }
        for i in range(n)
    ]


@pytest.fixture
def manifest():
    return Manifest.from_rows(rows(), OWN)


@pytest.mark.parametrize(
    "condition, holds",
    [
        ("", lambda r: True),
        ("part == tuned", lambda r: r["part"] == "tuned"),
        ("part==tuned|kept and needle < 5", lambda r: r["part"] != "held_out" and r["needle"] < 5),
        ("part != tuned|kept", lambda r: r["part"] == "held_out"),
        ("needle >= 0 and needle <= 3 and width > 66", lambda r: r["needle"] in (1, 2, 3)),
        ("needle == 1|3", lambda r: r["needle"] in (1, 3)),
        ("key == 'k7'", lambda r: r["key"] == "k7"),
        ("part == nowhere", lambda r: False),
    ],
)
def test_select(manifest, condition, holds):
    expected = [i for i, row in enumerate(rows()) if holds(row)]
    assert manifest.select(condition).tolist() == expected


@pytest.mark.parametrize(
    "condition, named",
    [
        ("prat == tuned", "columns are key, width"),
        ("part tuned", "is invalid"),
        ("part ==", "is invalid"),
        ("needle < few", "integers"),
        ("part < tuned", "text"),
        ("needle < 3|4", "alternatives"),
        ("captions == fox", "lists"),
    ],
)
def test_what_cannot_be_selected_is_said(manifest, condition, named):
    with pytest.raises(UserError, match=named):
        manifest.select(condition)


def test_round_trip(manifest, tmp_path):
    manifest.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read.table.equals(manifest.table)
    assert read.fingerprint == manifest.fingerprint
    assert read.column("width").dtype == np.int32
    assert read.column("captions")[2] == ["a thing 0", "a thing 1"]
    assert len(read) == 40


def test_fingerprint_tells_one_caption(manifest):
    changed = rows()
    changed[5]["captions"] = ["another"]
    assert Manifest.from_rows(changed, OWN).fingerprint != manifest.fingerprint


def test_damage_is_one_sentence(manifest, tmp_path):
    manifest.write(tmp_path)
    path = tmp_path / "manifest.parquet"
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        data = bytearray(whole)
        for place in random.integers(len(data) // 2, len(data), size=4):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            Manifest.read(tmp_path)
        except UserError as error:
            refused += 1
            assert "build the data set again" in str(error)
    assert refused > 50


def test_missing_or_half_written(manifest, tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.parquet"):
        Manifest.read(tmp_path)
    manifest.write(tmp_path)
    path = tmp_path / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        Manifest.read(tmp_path)


# Parts of a data set that has none ----------------------------------------------------------------


def parts(tmp_path, hashes):
    """The part of images with these contents, in a manifest without a column for it."""
    own = [
        {name: value for name, value in row.items() if name not in OWN} | {"sha256": text}
        for row, text in zip(rows(len(hashes)), hashes, strict=True)
    ]
    Manifest.from_rows(own).write(tmp_path)
    return Manifest.read(tmp_path).column("part").tolist()


def test_a_tenth_is_held_out_the_same_in_every_set(tmp_path):
    hashes = [f"image {i}" for i in range(2000)]
    found = dict(zip(hashes, parts(tmp_path, hashes), strict=True))
    held_out = {name for name, part in found.items() if part == "held_out"}
    assert set(found.values()) == {"train", "held_out"} and 150 < len(held_out) < 250
    # Other images beside them, another order, and copies change nothing.
    some = [*reversed(hashes[:500]), *hashes[:3]]
    again = parts(tmp_path, some)
    assert [name in held_out for name in some] == [part == "held_out" for part in again]
    read = Manifest.read(tmp_path)
    assert len(read.select("part == held_out")) + len(read.select("part != held_out")) == len(some)
    many = parts(tmp_path, [f"image {i}" for i in range(30_000)])
    assert 850 < many.count("held_out") < 1150
    assert all(part == "train" or f"image {i}" in held_out for i, part in enumerate(many[:2000]))


def test_a_small_set_has_both_parts_and_one_image_trains(tmp_path):
    for n in range(2, 12):
        assert set(parts(tmp_path, [f"{i}" for i in range(n)])) == {"train", "held_out"}
    assert parts(tmp_path, ["one"]) == ["train"] and parts(tmp_path, ["a", "a"]) == ["train"] * 2
    assert parts(tmp_path, []) == []


def test_a_builder_s_own_parts_stay(manifest, tmp_path):
    manifest.write(tmp_path)
    assert set(Manifest.read(tmp_path).column("part")) == {"tuned", "kept", "held_out"}
