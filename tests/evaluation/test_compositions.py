"""What a prompt asks for and what an image shows: hand-made boxes and colors, and real scenes whose
instance maps take the place of a detector.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from emu_jax.data.emoji_styles import STYLES
from emu_jax.data.scenes_drawing import Sprites, codes, draw, turn_hue
from emu_jax.data.scenes_plan import RELATIONS, ROWS, Scene
from emu_jax.data.scenes_things import HUES, THINGS
from emu_jax.errors import UserError
from emu_jax.evaluation import clip_colors
from emu_jax.evaluation.clip_colors import COLORS
from emu_jax.evaluation.compositions import (
    LAYOUTS,
    Composition,
    expected,
    related,
    relative_position,
)
from emu_jax.evaluation.contents import asked_by, contents, figures, read, require_words, summary
from emu_jax.evaluation.geneval import from_json, read_lines
from emu_jax.evaluation.instances import Box, Instance, distinct, hue, hues, outlined, see
from emu_jax.evaluation.metrics import mean_interval
from emu_jax.evaluation.prompt_sets import PromptSet, open_prompts

NAMES = {name: name for name in ("a", "b", "real")}


def box(left, top, right, bottom):
    mask = np.zeros((64, 64), bool)
    mask[top:bottom, left:right] = True
    return mask


def instance(label, left, top, right, bottom, color="", score=1.0):
    return Instance(label, score, box(left, top, right, bottom), color)


def row(scene):
    """A scene as a row of a prompt table."""
    lists = {"things": "|".join(scene.things), "colors": "|".join(scene.colors)}
    count = str(len(scene.things))
    return {"kind": scene.kind, **lists, "count": count, "relation": scene.relation}


@pytest.mark.parametrize("color", HUES)
def test_a_color_is_the_majority_of_hues(color):
    light, dark = map(ImageColor.getrgb, HUES[color])
    image = np.full((64, 64, 3), 255, np.uint8)
    image[10:50, 10:50] = 0  # the outline
    image[12:48, 12:48] = light
    image[30:48, 12:48] = dark
    image[12:20, 12:30] = ImageColor.getrgb(HUES["green" if color != "green" else "red"][0])
    assert hue(image, box(8, 8, 52, 52)) == color
    shaded = Image.new("RGBA", (8, 8), (230, 40, 30, 255))
    turned = np.asarray(turn_hue(shaded, color).convert("RGB"))
    assert hue(turned, np.ones((8, 8), bool)) == color


def test_what_is_black_white_or_gray_has_no_color():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:20], image[20:40] = 0, 128
    image[:2, :10] = (200, 0, 0)  # 20 of 4,096 pixels
    assert hue(image, np.ones((64, 64), bool)) == ""
    assert hue(image, box(0, 0, 12, 2)) == "red"


# The centers of both boxes by the definition of RELATIONS, sizes by its sizes; of square drawings.
def laid_out(relation, scale=20):
    one = RELATIONS[relation]
    first, second = (scale * size for size in one.sizes)
    x, y = one.offset(first, first, second, second)
    return (
        Box(50 - first / 2, 50 - first / 2, 50 + first / 2, 50 + first / 2),
        Box(50 + x - second / 2, 50 + y - second / 2, 50 + x + second / 2, 50 + y + second / 2),
    )


@pytest.mark.parametrize("relation", RELATIONS)
def test_layouts_are_told_apart(relation):
    first, second = laid_out(relation)
    assert [name for name in LAYOUTS if related(name, first, second)] == [relation]
    assert not related(relation, second, first)
    mirrored = Box(100 - second.right, second.top, 100 - second.left, second.bottom)
    if relation in ("chases", "kicks"):
        assert not related(relation, first, mirrored)
    moved = Box(*(x + 1.5 for x in second))  # a tenth of a thing
    assert related(relation, first, moved)
    far = Box(second.left + 60, second.top + 60, second.right + 60, second.bottom + 60)
    assert not any(related(name, first, far) for name in LAYOUTS)


@pytest.mark.parametrize(
    ("other", "positions"),
    [
        ((30, 0, 40, 10), {"left of"}),
        ((-30, 0, -20, 10), {"right of"}),
        ((0, 30, 10, 40), {"above"}),
        ((30, 30, 40, 40), {"left of", "above"}),
        # |offset| 2 = the margin 0.1 (10 + 10); |offset| 4 leaves 2, half of the distance.
        ((2, 0, 12, 10), set()),
        ((4, 0, 14, 10), set()),
        ((5, 0, 15, 10), {"left of"}),
    ],
)
def test_positions_are_those_of_geneval(other, positions):
    first, second = Box(0, 0, 10, 10), Box(*other)
    assert relative_position(first, second) == positions
    for name in ("left of", "right of", "above", "below"):
        assert related(name, first, second) == (name in positions)


def test_a_row_of_a_table_says_what_a_prompt_asks_for():
    asked = expected({"kind": "two", "things": "car|apple", "colors": "blue|", "count": "2"})
    assert asked == Composition("two", ("car", "apple"), ("blue", ""))
    # Of scenes whose prompts name no color the columns say the color that the things have.
    count = {"kind": "count", "things": "fox|fox", "colors": "red|red", "count": "2"}
    assert expected(count) == Composition("count", ("fox", "fox"), ("", ""))
    assert expected({"kind": "count", "things": "fox", "count": "3"}) == Composition(
        "count", ("fox",) * 3, ("",) * 3
    )
    assert expected({"kind": "mine", "things": "cat|tv", "relation": "left of"}).count == 2
    assert expected({"kind": "person", "things": "surfing", "colors": "", "count": "1"}) is None
    assert expected({"kind": "mine", "things": "", "count": ""}) is None


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"count": "three"}, "count is 'three'"),
        ({"count": "3"}, "count is '3' for the things car|apple"),
        ({"colors": "red|blue|red"}, "have the colors red|blue|red: give one for each"),
        ({"relation": "eats"}, "The relation 'eats' of car|apple cannot be read: use one of rides"),
        ({"things": "car", "relation": "rides"}, "and two things"),
    ],
)
def test_a_row_that_cannot_be_read_is_said(cells, said):
    with pytest.raises(UserError, match=said.replace("|", r"\|")):
        expected({"kind": "mine", "things": "car|apple"} | cells)


def test_answers():
    car, apple = instance("car", 2, 2, 20, 20, "blue"), instance("apple", 40, 2, 60, 20, "red")
    two = Composition("two", ("car", "apple"), ("blue", "red"))
    right = {"count": True, "things": True, "color": True}
    assert two.answers([car, apple]) == right
    swapped = [instance("car", 2, 2, 20, 20, "red"), instance("apple", 40, 2, 60, 20, "blue")]
    assert two.answers(swapped) == {**right, "color": False}  # bound to the wrong things
    assert two.answers([car, apple, car]) == {**right, "count": False}
    assert two.answers([car]) == {"count": False, "things": False, "color": False}
    fox = instance("fox", 2, 40, 20, 60)
    assert two.answers([car, fox]) == {"count": True, "things": False, "color": False}
    three = Composition("count", ("apple",) * 3, ("",) * 3)
    assert three.answers([apple] * 3) == {"count": True, "things": True}
    assert three.answers([apple] * 2) == {"count": False, "things": True}
    assert three.answers([]) == {"count": False, "things": False}
    left = Composition("mine", ("car", "apple"), ("", ""), "left of")
    assert left.answers([car, apple])["relation"]
    assert not Composition("mine", ("apple", "car"), ("", ""), "left of").answers([car, apple])[
        "relation"
    ]
    assert not left.answers([car])["relation"]
    same = Composition("mine", ("car", "car"), ("", ""), "above")
    assert same.answers([car, instance("car", 2, 40, 20, 60)])["relation"]  # in either order
    assert same.answers([instance("car", 2, 40, 20, 60), car])["relation"]
    assert not same.answers([car])["relation"]


class Truth:
    """A detector that knows the instance maps: of each image, by its number."""

    name, words = "truth", tuple(THINGS)

    def __init__(self, scenes, maps):
        self.scenes, self.maps = scenes, maps

    def __call__(self, images):
        return [
            [Instance(thing, 1.0, own == i + 1) for i, thing in enumerate(scene.things)]
            for scene, own in zip(self.scenes, self.maps, strict=True)
        ]


@pytest.fixture(scope="module")
def sprites():
    wanted = codes()
    found = STYLES["openmoji"].find(wanted.values(), None, None)
    return Sprites("openmoji", {name: found[code] for name, code in wanted.items()})


SCENES = [
    Scene("single", ("fox",), ("orange",)),
    *(Scene("count", ("ladybug",) * n, ("red",) * n, rows=ROWS[n][0]) for n in ROWS),
    *(Scene("color", (thing,), (c,)) for thing, c in zip(list(THINGS)[::10], HUES, strict=True)),
    Scene("two", ("car", "apple"), ("purple", "green")),
    *(
        Scene("action", ("monkey", second), ("orange", THINGS[second].openmoji), relation)
        for relation, second in zip(
            RELATIONS, ("car", "banana", "dog", "drum", "apple", "umbrella"), strict=True
        )
    ),
]


@pytest.fixture(scope="module")
def drawn(sprites):
    """The scenes at 64 x 64 on white, and what is seen in them."""
    images, maps = [], []
    for i, scene in enumerate(SCENES):
        image, instances = draw(scene, sprites, str(i))
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image).convert("RGB")
        images.append(np.asarray(flat.resize((64, 64), Image.Resampling.LANCZOS)))
        maps.append(np.asarray(instances)[1::2, 1::2])
    return images, maps


def test_every_kind_of_real_scene_is_right(drawn):
    images, maps = drawn
    seen = see(images, Truth(SCENES, maps), hues)
    for scene, own in zip(SCENES, seen, strict=True):
        assert all(expected(row(scene)).answers(own).values()), (scene, [x.name for x in own])


def test_a_real_scene_that_shows_something_else_is_wrong(drawn):
    images, maps = drawn
    seen = dict(zip(SCENES, see(images, Truth(SCENES, maps), hues), strict=True))

    def wrong(scene, **cells):
        answers = expected(row(scene) | cells).answers(seen[scene])
        return [question for question, answer in answers.items() if not answer]

    three, two = SCENES[3], next(s for s in SCENES if s.kind == "two")
    assert wrong(three, things="ladybug", colors="", count="4") == ["count"]
    assert wrong(three, things="crab|crab|crab") == ["things"]
    assert wrong(two, colors="green|purple") == ["color"]
    assert wrong(two, things="car|heart") == ["things", "color"]
    for scene in (s for s in SCENES if s.relation):
        for other in RELATIONS:
            assert wrong(scene, relation=other) == ["relation"] * (other != scene.relation)


def lines(*entries):
    return [json.dumps(entry) for entry in entries]


def test_geneval_is_read_and_judged_by_its_rules():
    cat, tv = {"class": "cat", "count": 1}, {"class": "tv", "count": 1}
    entries = [
        {"tag": "single_object", "include": [cat], "prompt": "a photo of a cat"},
        {"tag": "two_object", "include": [cat, tv], "prompt": "a photo of a cat and a tv"},
        {
            "tag": "counting",
            "include": [{"class": "cat", "count": 2}],
            "exclude": [{"class": "cat", "count": 3}],
            "prompt": "a photo of two cats",
        },
        {"tag": "colors", "include": [cat | {"color": "red"}], "prompt": "a photo of a red cat"},
        {
            "tag": "position",
            "include": [cat, tv | {"position": ["right of", 0]}],
            "prompt": "a photo of a tv right of a cat",
        },
        {
            "tag": "color_attr",
            "include": [cat | {"color": "red"}, tv | {"color": "blue"}],
            "prompt": "a photo of a red cat and a blue tv",
        },
    ]
    prompts, columns = read_lines([*lines(*entries[:3]), "", *lines(*entries[3:])], "FILE")
    assert prompts == [entry["prompt"] for entry in entries]
    asked = asked_by(columns)
    assert [one.kind for one in asked.values()] == columns["kind"]
    assert [one.count for one in asked.values()] == [1, 2, 2, 1, 2, 2]
    red, blue = (instance("cat", 2, 2, 20, 20, color) for color in ("red", "blue"))
    right, left = (instance("tv", x, 2, x + 14, 20, "blue") for x in (40, 2))

    def right_of(*seen):
        return [all(one.answers(seen).values()) for one in asked.values()]

    #                                  single  two    count  color  position  attributes
    assert right_of(red, right) == [True, True, False, True, True, True]
    assert right_of(red, red, right) == [True, True, True, True, True, True]
    assert right_of(red, red, red) == [True, False, False, True, False, False]
    assert right_of(blue, right) == [True, True, False, False, True, False]
    assert right_of(blue, red, right) == [True, True, True, False, True, False]  # the best counts
    assert right_of(red, left) == [True, True, False, True, False, True]
    assert right_of() == [False] * 6
    answers = asked[4].answers([red, left])
    assert answers == {"things": True, "relation": False}


def test_prompts_of_geneval_are_a_prompt_set(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    cat = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
    file.write_text("\n".join(lines(cat | {"prompt": "a photo of a red cat"})) + "\n")
    found = open_prompts(f"geneval:{file}")
    assert found.prompts == ("a photo of a red cat",) and found.column("kind") == ("colors",)
    assert asked_by(found.columns)[0] == from_json(json.dumps(cat))
    with pytest.raises(UserError, match="use --prompts=geneval:FILE"):
        open_prompts("geneval:none.jsonl")


class Towers:
    """A CLIP that embeds an image as its mean color, less gray, a text as the color it names."""

    def images(self, images):
        return np.stack([x.reshape(-1, 3).mean(0) - 0x99 for x in images])

    def texts(self, texts):
        return np.stack(
            [next(np.array(ImageColor.getrgb(c)) for c in COLORS if c in t) - 127.5 for t in texts]
        )


def test_clip_reads_the_color_of_what_is_below_the_mask(monkeypatch):
    monkeypatch.setattr(clip_colors, "open_clip", lambda folder: Towers())
    monkeypatch.setattr(clip_colors, "clip_folder", lambda weights, name: name)
    image = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    image[10:20, 10:30] = (255, 255, 0)
    seen = [instance("cat", 10, 10, 30, 20), instance("tv", 40, 40, 60, 60)]
    assert clip_colors.ClipColors()(image, seen) == ["yellow", "blue"]
    assert clip_colors.ClipColors()(image, []) == []
    half = Instance("cat", 1.0, box(10, 10, 30, 15) | box(10, 10, 20, 20))
    alone = clip_colors.cut_out(image, half)
    assert alone.shape == (10, 20, 3)
    assert np.all(alone[:5] == (255, 255, 0)) and np.all(alone[5:, 10:] == 0x99)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "FILE, line 1 is not JSON"),
        ('{"tag": "colors"}', "FILE, line 1 has no prompt"),
        ('{"prompt": "x", "include": [{"class": "cat", "count": 1}]}', "form: 'tag'"),
        ('{"prompt": "x", "tag": "y", "include": []}', "nothing to include"),
        ('{"prompt": "x", "tag": "y", "include": [{"class": "cat", "count": 0}]}', "whole numbers"),
        (
            '{"prompt": "x", "tag": "y", "include": '
            '[{"class": "cat", "count": 1, "position": ["near", 0]}]}',
            "the position 'near' is not one of left of",
        ),
        (
            '{"prompt": "x", "tag": "y", "include": '
            '[{"class": "cat", "count": 1, "position": ["above", 0]}]}',
            "a position of no earlier clause",
        ),
        ("", "FILE has no prompts"),
    ],
)
def test_a_line_that_is_not_geneval_is_said(line, said):
    with pytest.raises(UserError, match=said):
        read_lines([line], "FILE")


class Fixed:
    """Sees the same instances in every image of one brightness."""

    name, words = "fixed", ("fox", "car")

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, images):
        return [self.seen[int(image[0, 0, 0])] for image in images]


def test_one_thing_is_not_counted_under_two_labels():
    pear, lemon = instance("pear", 0, 0, 20, 20), instance("lemon", 0, 0, 20, 13)  # IoU 0.65
    held = instance("lemon", 0, 0, 20, 10)  # 0.5: in front of the other
    assert distinct([pear, lemon]) == [pear] and distinct([lemon, pear]) == [lemon]
    assert distinct([pear, held]) == [pear, held] and distinct([]) == []
    image = [np.zeros((64, 64, 3), np.uint8)]
    asked = asked_by({"kind": ["single"], "things": ["pear"]})
    assert read(image, asked, Fixed({0: [pear, lemon]}), hues).answers[0]["count"]
    asked = asked_by({"geneval": ['{"tag": "x", "include": [{"class": "lemon", "count": 1}]}']})
    assert read(image, asked, Fixed({0: [pear, lemon]}), hues).answers[0]["things"]


def test_a_report_has_figures_by_kind_differences_and_the_worst_images():
    """Of 12 prompts a shows 9 as asked, b 6; two of persons are left out."""
    fox, car = instance("fox", 2, 2, 30, 30), instance("car", 34, 2, 62, 30)
    detector = Fixed({0: [], 1: [fox], 2: [fox, car], 3: [fox, instance("fox", 34, 34, 62, 62)]})
    things = ["fox"] * 4 + ["fox|car"] * 4 + ["fox|fox"] * 4 + ["surfing"] * 2
    kinds = ["single"] * 4 + ["two"] * 4 + ["count"] * 4 + ["person"] * 2
    columns = {"kind": kinds, "things": things}
    asked = asked_by(columns)
    assert list(asked) == list(range(12))
    truth = [1] * 4 + [2] * 4 + [3] * 4 + [0] * 2
    shown = {
        "a": [0, *truth[1:4], 1, *truth[5:8], 1, *truth[9:]],
        "b": [0, 0, *truth[2:4], 1, 1, *truth[6:8], 1, 1, *truth[10:]],
        "real": truth,
    }
    images = {
        name: [np.full((64, 64, 3), x, np.uint8) for x in values] for name, values in shown.items()
    }
    readings = {name: read(own, asked, detector, hues) for name, own in images.items()}
    prompts = PromptSet(tuple(f"prompt {i}" for i in range(14)))
    sections, record = contents(readings, asked, prompts, NAMES, "fixed", "real")
    values = record["figures"]["a"]
    assert values["all"]["right"]["value"] == pytest.approx(9 / 12)
    assert values["all"]["count"]["value"] == pytest.approx(9 / 12)
    assert values["all"]["things"]["value"] == pytest.approx(10 / 12)  # one fox of two is a fox
    assert values["count"]["things"]["value"] == 1 and values["two"]["things"]["value"] == 0.75
    assert "color" not in values["all"] and "relation" not in values["all"]
    assert record["figures"]["real"]["all"]["right"]["low"] < 1
    assert list(record["differences"]) == ["b against a"]
    lead = record["differences"]["b against a"]["all right"]
    assert lead["value"] == pytest.approx(-3 / 12) and lead["low"] < -0.25 < lead["high"]
    assert record["images"]["a"][4] == {
        "image": 4,
        "kind": "two",
        "seen": ["fox"],
        "right": False,
        "count": False,
        "things": False,
    }
    table, differences, worst = sections
    assert "2 prompts name no things" in table.body()
    assert [r[:3] for r in table.rows if r[0] == "two"] == [
        ["two", "right", 4],
        ["two", "count", 4],
        ["two", "things", 4],
    ]
    assert [*differences.rows[0][:2], differences.rows[0][2][:4]] == ["all", "right", "-25%"]
    # Of each kind the two that most models have wrong.
    assert [prompt for prompt, _ in worst.rows] == [f"prompt {i}" for i in (0, 1, 4, 5, 8, 9)]
    notes = [tile.note for tile in worst.rows[1][1]]
    assert notes == ["right", "wrong: count, things", "right"]
    names, rows = summary(readings, asked, NAMES)
    assert rows[1][names.index("right: two")].startswith("50.0% (")
    assert figures(readings["a"].shares(asked, "two")).keys() == {"right", "count", "things"}
    # Two images of each prompt in a row: shares stay, and the six prompts are what is resampled.
    pairs = replace(prompts, repeats=2)
    twice = contents(readings, asked, pairs, NAMES, "fixed", "real")[1]["figures"]["a"]["all"]
    halves = np.array([0.5, 1, 0.5, 1, 0.5, 1])
    assert twice["right"] == mean_interval(halves)._asdict()
    with pytest.raises(UserError, match="fixed has no word for 'tree'"):
        require_words(asked_by({"kind": ["x"], "things": ["tree"]}), detector)
    assert asked_by({"category": ["Arts"]}) == {}


def test_what_is_seen_is_drawn_on_the_image():
    image = np.full((64, 64, 3), 255, np.uint8)
    one = outlined(image, [instance("fox", 10, 20, 40, 50, "red")])
    assert one.shape == (192, 192, 3)
    ink = one[60, 90]  # the upper edge, three times as large
    assert np.all(one[149, 30:120] == ink) and np.all(ink != 255)
    assert np.all(one[100, 60] == 255)  # inside
    assert np.any(one[44:60, 30:60] != 255)  # the label above
    assert np.array_equal(outlined(image, []), np.full((192, 192, 3), 255))


def test_a_line_of_a_table_can_be_of_geneval():
    assert from_json('{"tag": "x", "include": [{"class": "cat", "count": 2}]}').things == ("cat",)
