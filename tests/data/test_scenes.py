"""What scenes show, how they are split, drawn and described; a small real build."""

import hashlib
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from PIL import Image, ImageColor

from emu_jax.assembly.config import read
from emu_jax.assembly.models import WEIGHTS
from emu_jax.cli.main import main
from emu_jax.data.decode import open_image
from emu_jax.data.emoji_concepts import forms
from emu_jax.data.emoji_styles import CANVAS, STYLES
from emu_jax.data.scenes import TINY
from emu_jax.data.scenes_drawing import Sprites, codes, draw, exchange_tones, turn_hue
from emu_jax.data.scenes_plan import (
    KINDS,
    OTHER_COLOR,
    RELATIONS,
    ROWS,
    SPLITS,
    TEMPLATES,
    Scene,
    complex_caption,
    plan,
    simple_caption,
)
from emu_jax.data.scenes_things import ACTIONS, HUES, PERSONS, THINGS, plural
from emu_jax.data.source import open_source
from emu_jax.text.encoder import make_encoder

OVER_SCENES = ("adapter", "feedback", "dpo")  # small configs that start from builtin:scenes_96


@pytest.fixture(scope="module")
def sprites():
    wanted = codes()
    found = STYLES["openmoji"].find(wanted.values(), None, None)
    return Sprites("openmoji", {name: found[code] for name, code in wanted.items()})


@pytest.fixture(scope="module")
def scenes():
    return {style: plan(style, 12_000) for style in ("openmoji", "fluent")}


def test_things_are_emoji_of_one_hue_family(sprites):
    by_code = {form.code: form for form in forms().values()}
    tones = {ImageColor.getrgb(t): color for color, pair in HUES.items() for t in pair}
    assert len(THINGS) == 60 and len(ACTIONS) == 25
    wanted = codes()
    for word, thing in THINGS.items():
        form = by_code[wanted[word]]
        assert form.name == thing.name and form.styles == {"openmoji", "fluent"}
        drawn = STYLES["openmoji"].render(sprites.drawings[word]).convert("RGBA")
        pixels, counts = np.unique(_opaque(drawn), axis=0, return_counts=True)
        area = Counter()
        for pixel, count in zip(pixels, counts, strict=True):
            area[tones.get(tuple(pixel.tolist()), "other")] += int(count)
        colored = sum(area.values()) - area["other"]
        assert area[thing.openmoji] >= 0.8 * colored, (word, area)
        assert colored >= 0.1 * sum(area.values()), (word, area)
    for action in ACTIONS:
        for person in PERSONS:
            assert by_code[wanted[f"{person} {action}"]].styles == {"openmoji", "fluent"}


def _opaque(image):
    pixels = np.asarray(image)
    return pixels[pixels[..., 3] == 255][:, :3]


@pytest.mark.parametrize("style", ["openmoji", "fluent"])
def test_the_plan_has_the_shares_that_it_promises(scenes, style):
    found = Counter((scene.kind, scene.split) for scene in scenes[style])
    for kind, share in KINDS.items():
        total = sum(found[kind, split] for split in SPLITS)
        assert total == round(share * 12_000)
        for split, part in SPLITS.items():
            expected = float(split == "train") if kind == "single" else part
            assert found[kind, split] == pytest.approx(expected * total, abs=1)
    colored = [scene for scene in scenes[style] if scene.kind == "color"]
    other = [scene.colors[0] != THINGS[scene.things[0]].color(style) for scene in colored]
    assert np.mean(other) == pytest.approx(OTHER_COLOR, abs=0.04)
    assert all(0 < len(scene.things) <= 6 for scene in scenes[style])


def test_no_combination_is_in_two_splits_of_any_style(scenes):
    splits = {}
    for scene in [*scenes["openmoji"], *scenes["fluent"]]:
        assert splits.setdefault(scene.combination, scene.split) == scene.split
    shares = Counter(splits.values())
    assert min(shares[split] for split in SPLITS) > 900
    # Both orders of two things are one combination; so is every arrangement of equal things.
    two = Scene("two", ("car", "apple"), ("blue", "red"))
    assert two.combination == Scene("two", ("apple", "car"), ("red", "blue")).combination
    assert two.combination != Scene("two", ("apple", "car"), ("blue", "red")).combination


@pytest.mark.parametrize("style", ["openmoji", "fluent"])
def test_every_word_occurs_in_training_and_every_thing_alone(scenes, style):
    training = [scene for scene in scenes[style] if scene.split == "train"]
    assert {s.things[0] for s in training if s.kind == "single"} == set(THINGS)
    assert {s.things[0] for s in training if s.kind == "person"} == set(ACTIONS)
    assert {s.colors[0] for s in training if s.kind == "color"} == set(HUES)
    assert {len(s.things) for s in training if s.kind == "count"} == set(ROWS)
    assert {s.relation for s in training if s.kind == "action"} == set(RELATIONS)
    words = {w for s in training for w in re.findall(r"[a-z-]+", _captions(s).lower())}
    for scene in scenes[style]:
        assert set(re.findall(r"[a-z-]+", _captions(scene).lower())) <= words


def _captions(scene):
    return f"{simple_caption(scene, 0)} {complex_caption(scene)}"


def test_the_plan_depends_on_the_seed_alone(scenes):
    again = plan("openmoji", 600)
    assert again == plan("openmoji", 600) != plan("openmoji", 600, seed=1)
    # A smaller plan begins as a larger one, kind by kind, and still has every thing alone.
    singles = [scene for scene in again if scene.kind == "single"]
    assert singles == scenes["openmoji"][:60] and len({s.things for s in singles}) == 60


def test_captions():
    three = Scene("count", ("apple",) * 3, ("red",) * 3, rows=(2, 1))
    sentences = [simple_caption(three, i) for i in range(len(TEMPLATES))]
    assert sentences == [
        "Three apples.",
        "There are three apples.",
        "Here are three apples.",
        "A picture of three apples.",
        "You can see three apples.",
    ]
    assert complex_caption(three) == (
        "3 apples, exactly three, apple apple apple, two above one below, red apple, fruit, "
        "plain white background, sharp, best quality"
    )
    two = Scene("two", ("car", "apple"), ("purple", "green"))
    assert simple_caption(two, 0) == "A purple car next to a green apple."
    assert complex_caption(two).startswith("purple car on the left, green apple on the right, ex")
    held = Scene("action", ("monkey", "banana"), ("orange", "yellow"), "holds")
    assert simple_caption(held, 1) == "There is a monkey holding a banana."
    assert "monkey holding banana, banana in front of monkey, " in complex_caption(held)
    color = Scene("color", ("umbrella",), ("orange",))
    assert simple_caption(color, 0) == "An orange umbrella."
    assert complex_caption(color).startswith("1 orange umbrella, exactly one, umbrella, orange u")
    man = Scene("person", ("surfing",), ("",), person="man")
    assert simple_caption(man, 0) == "A man surfing."
    assert complex_caption(man).startswith("1 man surfing, exactly one person, surfing")
    assert simple_caption(Scene("count", ("fox",), ("orange",)), 1) == "There is one fox."
    words = ("fox", "butterfly", "octopus", "fish", "monkey", "strawberry", "t-shirt")
    assert [plural(word) for word in words] == (
        ["foxes", "butterflies", "octopuses", "fish", "monkeys", "strawberries", "t-shirts"]
    )


def test_the_stage_compose_reads_whole_complex_captions(scenes):
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=tiny,stage=compose")
    of_scenes = [one for one in config.data.train.values() if one.dataset.startswith("scenes/")]
    assert {one.captions for one in of_scenes} == {"complex"}
    weights = [one.weight for one in config.data.train.values()]
    assert sum(one.weight for one in of_scenes) == pytest.approx(0.9 * sum(weights))
    captions = [complex_caption(scene) for plan in scenes.values() for scene in plan]
    length = config.text.minilm.length
    longest = make_encoder("minilm", length + 8).tokenize(captions)["mask"].sum(1).max()
    assert longest == length  # nothing is cut, and no token is padding in every caption


def test_what_starts_from_the_shipped_generator_draws_as_it_does():
    folder = WEIGHTS / "scenes_96"
    shipped = ConfigDict(json.loads((folder / "config.json").read_text())["config"])
    assert (folder / "model.safetensors").stat().st_size < 17e6
    own = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=tiny,stage=compose")
    over = [read(f"{runs.ROOT}/configs/{name}.py:size=tiny") for name in OVER_SCENES]
    assert {config.init_from for config in over} == {"builtin:scenes_96"}
    for config in (own, *over):
        assert config.data.image_size == shipped.data.image_size
        assert config.sampling.guidance_scale == shipped.sampling.guidance_scale
        assert config.text.minilm.length == shipped.text.minilm.length


def test_exchanging_tones_recolors_exactly(sprites):
    svg, render = sprites.drawings["apple"], STYLES["openmoji"].render
    images = (render(svg), render(exchange_tones(svg, "red", "blue")))
    own, blue = (np.asarray(image.convert("RGBA")) for image in images)
    assert np.array_equal(own[..., 3], blue[..., 3])
    for old, new in zip(HUES["red"], HUES["blue"], strict=True):
        where = np.all(own == (*ImageColor.getrgb(old), 255), -1)
        assert where.sum() > 100
        assert np.all(blue[where] == (*ImageColor.getrgb(new), 255))
    kept = ~np.any([np.abs(own[..., i].astype(int) - blue[..., i]) > 0 for i in range(3)], 0)
    leaf = np.all(own == (*ImageColor.getrgb(HUES["green"][0]), 255), -1)
    assert leaf.sum() > 50 and np.all(kept[leaf])
    # Mostly in its dark tone: a dark yellow would look orange.
    light, dark = (ImageColor.getrgb(tone) for tone in HUES["yellow"])
    book = _opaque(sprites("book", "yellow"))
    assert np.all(book == light, -1).sum() > np.all(book == dark, -1).sum()


@pytest.mark.parametrize("color", HUES)
def test_a_shaded_drawing_turns_its_hue_and_keeps_its_shape(color):
    y, x = np.mgrid[:40, :40] / 40
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.2
    hsv = np.stack([np.full_like(x, 0.97), 0.5 + 0.4 * x, 0.6 + 0.4 * y], -1)
    image = Image.fromarray(np.rint(hsv * 255).astype(np.uint8), "HSV").convert("RGBA")
    image.putalpha(Image.fromarray(disc.astype(np.uint8) * 255))
    turned = turn_hue(image, color)
    assert np.array_equal(np.asarray(turned)[..., 3], np.asarray(image)[..., 3])
    found = np.asarray(turned.convert("RGB").convert("HSV")).astype(float)[disc] / 255
    hues = {"red": 350, "orange": 24, "yellow": 47, "green": 115, "blue": 208, "purple": 266}
    gap = np.abs((found[:, 0] * 360 - hues[color] + 180) % 360 - 180)
    assert gap.max() < 5
    order = np.argsort(hsv[disc][:, 2])  # shading keeps its order
    assert np.all(np.diff(found[order, 2]) >= -0.02)


def test_every_instance_is_on_the_canvas_and_in_its_map(sprites, scenes):
    for index, scene in enumerate(scenes["openmoji"][::97]):
        image, instances = draw(scene, sprites, f"0 {index}")
        alpha = np.asarray(image)[..., 3]
        assert image.size == instances.shape == (CANVAS, CANVAS)
        areas = np.bincount(instances.ravel(), minlength=len(scene.things) + 1)
        assert len(areas) == len(scene.things) + 1 and areas[1:].min() >= 60, scene
        edges = [alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]
        assert not np.any(edges), scene
        assert np.all(alpha[instances > 0] >= 128)
        if scene.kind != "action":  # nothing overlaps: the alpha channel is the map
            assert np.array_equal(alpha >= 128, instances > 0), scene


def test_equal_things_never_touch(sprites):
    for rows in (rows for arrangements in ROWS.values() for rows in arrangements):
        for seed in range(5):
            things = ("ladybug",) * sum(rows)
            scene = Scene("count", things, ("red",) * len(things), rows=rows)
            _, instances = draw(scene, sprites, str(seed))
            boxes = [_box(instances == i + 1) for i in range(len(things))]
            for i, (left, top, right, bottom) in enumerate(boxes):
                for left2, top2, right2, bottom2 in boxes[:i]:
                    beside = left > right2 or right < left2
                    assert beside or top > bottom2 or bottom < top2


def _box(mask):
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max(), y.max()


def _center(mask):
    left, top, right, bottom = _box(mask)
    return (left + right) / 2, (top + bottom) / 2


@pytest.mark.parametrize("relation", RELATIONS)
def test_layout_stands_in_for_action(sprites, scenes, relation):
    chosen = [s for s in scenes["openmoji"] if s.relation == relation][:12]
    for index, scene in enumerate(chosen):
        _, instances = draw(scene, sprites, str(index))
        first, second = instances == 1, instances == 2
        (x, y), (x2, y2) = _center(first), _center(second)
        left, top, right, bottom = _box(first)
        _, _, right2, bottom2 = _box(second)
        if relation == "rides":
            assert y < y2 and bottom < bottom2
        elif relation == "carries":
            assert y2 < y and second.sum() < 2 * first.sum()
        elif relation == "chases":
            assert right2 < left and abs(bottom - bottom2) <= 2
        elif relation == "kicks":
            assert x2 < x and y2 > y and right2 <= left + 2
        elif relation == "holds":
            assert left <= x2 <= right and top <= y2 <= bottom
        else:
            assert y2 < y and first.sum() > 60


def test_a_small_build(tmp_path, sprites):
    place = f"--data_dir={tmp_path}"
    assert main(["data", "build", "scenes/openmoji_tiny", place]) == 0
    source = open_source("scenes/openmoji_tiny", tmp_path)
    manifest = source.manifest
    assert len(source) == TINY and source.further == ["instances"]
    expected = plan("openmoji", TINY)
    for name in ("things", "colors"):
        assert [tuple(v) for v in manifest.column(name)] == [getattr(s, name) for s in expected]
    for index in range(0, TINY, 7):
        instances = np.asarray(open_image(source.read(index, "instances")))
        assert instances.shape == (CANVAS, CANVAS)
        assert set(np.unique(instances)) == set(range(manifest.column("count")[index] + 1))
        row = {name: manifest.column(name)[index] for name in ("simple", "complex", "captions")}
        assert row["captions"] == [row["simple"], row["complex"]]
    kept = manifest.select("split == test|validation and kind != single")
    assert {expected[i].split for i in kept} == {"test", "validation"}
    assert len(manifest.select("relation == hides under|holds")) > 0
    hashes = [hashlib.sha256(_drawn(expected[i], i, sprites)).hexdigest() for i in (0, 31, 59)]
    assert hashes == manifest.column("sha256")[[0, 31, 59]].tolist()


def _drawn(scene, index, sprites):
    file = io.BytesIO()
    draw(scene, sprites, f"0 {index}")[0].save(file, "PNG")
    return file.getvalue()
