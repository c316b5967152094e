"""The scenes of the data set `scenes`: what each shows, its split, and its two captions.

A *combination* is what a prompt asks for, whatever its words and style: "count: 3 apple", "two:
blue car, red apple". A hash of it decides its split, so that no combination is in two splits and
both styles agree:

    train         70 %, and everything that occurs alone: single things, actions of "a person"
    validation    15 %
    test          15 %

Everything here is a function of style, number of records and seed. `random.Random(text).random()`
gives the same numbers on every platform and in every version of Python.

Captions come in two grammars. A simple one is a sentence by one of five templates. A complex one
consists of keywords: count, arrangement, repeated names, broader words, quality.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from emu_jax.data.emoji_concepts import with_article
from emu_jax.data.scenes_things import (
    ACTIONS,
    ACTOR,
    COVER,
    HELD,
    HUES,
    KICKED,
    PERSONS,
    RIDDEN,
    THINGS,
    plural,
)

T = TypeVar("T")
SPLITS = {"train": 0.7, "validation": 0.15, "test": 0.15}
_TRAIN_OF_PERSONS = 0.55  # of the actions of "a man" and "a woman": 0.7 with those of "a person"
# Share of all records.
KINDS = {"single": 0.1, "count": 0.25, "color": 0.2, "two": 0.2, "action": 0.2, "person": 0.05}
OTHER_COLOR = 0.7  # share of the kind `color` in which the color is not the thing's own

# Number of things -> arrangements: the number of things in each row, from the top.
ROWS = {
    1: ((1,),),
    2: ((2,), (1, 1)),
    3: ((3,), (2, 1), (1, 2)),
    4: ((2, 2), (3, 1), (1, 3)),
    5: ((3, 2), (2, 3), (2, 1, 2)),
    6: ((3, 3), (2, 2, 2)),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_SINGLE, _SEVERAL = 0, 1
TEMPLATES = (
    ("{0}.", "{0}."),
    ("There is {0}.", "There are {0}."),
    ("Here is {0}.", "Here are {0}."),
    ("A picture of {0}.", "A picture of {0}."),
    ("You can see {0}.", "You can see {0}."),
)


@dataclass(frozen=True)
class Relation:
    """An action of two things: layout stands in for it.

    `doing` is the participle of captions, `role` that of the second thing, `keywords` describe the
    layout. `sizes` are the longer sides of both things. `offset` gives the center of the second
    relative to that of the first, from their widths and heights (y points down). `in_front`: the
    second is drawn over the first.
    """

    doing: str
    role: str
    keywords: str
    sizes: tuple[float, float]
    offset: Callable[[float, float, float, float], tuple[float, float]]
    in_front: bool


RELATIONS = {
    "rides": Relation(
        "riding", RIDDEN, "{0} on top of {1}", (0.75, 1.0),
        lambda w, h, w2, h2: (0.0, h / 2 + 0.3 * h2), in_front=False,
    ),
    "carries": Relation(
        "carrying", HELD, "{1} on top of {0}", (1.0, 0.6),
        lambda w, h, w2, h2: (0.0, -(0.46 * h + h2 / 2)), in_front=True,
    ),
    "chases": Relation(
        "chasing", ACTOR, "{1} on the left, {0} on the right", (1.0, 1.0),
        lambda w, h, w2, h2: (-(w / 2 + w2 / 2 + 0.25), h / 2 - h2 / 2), in_front=False,
    ),
    "kicks": Relation(
        "kicking", KICKED, "{1} at the lower left of {0}", (1.0, 0.5),
        lambda w, h, w2, h2: (-(w / 2 + w2 / 2), 0.4 * h - h2 / 2), in_front=True,
    ),
    "holds": Relation(
        "holding", HELD, "{1} in front of {0}", (1.0, 0.45),
        lambda w, h, w2, h2: (-0.1 * w, 0.2 * h), in_front=True,
    ),
    "hides under": Relation(
        "hiding under", COVER, "{1} above {0}, {0} half covered", (0.85, 1.0),
        lambda w, h, w2, h2: (0.0, -(0.1 * h + h2 / 2)), in_front=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What a scene shows. Instance i + 1 is `things[i]` in `colors[i]`.

    A color is empty where the drawing has several. `rows` is the arrangement of equal things.
    `person` is the person of an action whose name is the only thing.
    """

    kind: str
    things: tuple[str, ...]
    colors: tuple[str, ...]
    relation: str = ""
    rows: tuple[int, ...] = (1,)
    person: str = ""

    @property
    def combination(self) -> str:
        """What a prompt asks for; equal for both orders of two things side by side."""
        if self.kind == "count":
            return f"count: {len(self.things)} {self.things[0]}"
        if self.kind == "color":
            return f"color: {self.colors[0]} {self.things[0]}"
        if self.kind == "two":
            pair = (f"{c} {t}" for c, t in zip(self.colors, self.things, strict=True))
            return f"two: {', '.join(sorted(pair))}"
        if self.kind == "action":
            return f"action: {self.things[0]} {self.relation} {self.things[1]}"
        return f"{self.kind}: {self.person} {self.things[0]}".replace("  ", " ")

    @property
    def split(self) -> str:
        if self.kind == "single" or self.person == "person":
            return "train"
        digest = hashlib.sha256(self.combination.encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        train = _TRAIN_OF_PERSONS if self.person else SPLITS["train"]
        if place < train:
            return "train"
        return "validation" if place < (1 + train) / 2 else "test"


def plan(style: str, records: int, seed: int = 0) -> list[Scene]:
    """The scenes of a data set, kind by kind; 70 %, 15 % and 15 % of a kind are in each split."""
    scenes = []
    for kind, share in KINDS.items():
        count = round(share * records)
        for i in range(count):
            draw = Random(f"{seed} {kind} {i}")
            while (scene := _scene(kind, style, i, draw)).split != _split(kind, i, count):
                pass
            scenes.append(scene)
    return scenes


def _split(kind: str, index: int, count: int) -> str:
    if kind == "single" or index < SPLITS["train"] * count:
        return "train"
    return "test" if index >= (1 - SPLITS["test"]) * count else "validation"


def _scene(kind: str, style: str, index: int, draw: Random) -> Scene:
    """One scene at random. Single things go round, so that each occurs alone however few there
    are."""

    def pick(options: Sequence[T]) -> T:
        return options[int(draw.random() * len(options))]

    def own(*things: str) -> tuple[str, ...]:
        return tuple(THINGS[thing].color(style) for thing in things)

    words, colors = list(THINGS), list(HUES)
    recolored = [word for word in words if THINGS[word].color(style)]
    if kind == "single":
        thing = words[index % len(words)]
        return Scene(kind, (thing,), own(thing))
    if kind == "count":
        number, thing = 1 + int(draw.random() * 6), pick(words)
        return Scene(kind, (thing,) * number, own(thing) * number, rows=pick(ROWS[number]))
    if kind == "color":
        thing = pick(recolored)
        (color,) = own(thing)
        if draw.random() < OTHER_COLOR:
            color = pick([other for other in colors if other != color])
        return Scene(kind, (thing,), (color,))
    if kind == "two":
        thing, color = pick(recolored), pick(colors)
        second = pick([word for word in recolored if word != thing])
        return Scene(kind, (thing, second), (color, pick([c for c in colors if c != color])))
    if kind == "action":
        relation, actor = pick(list(RELATIONS)), pick(_with_role(ACTOR))
        other = pick([word for word in _with_role(RELATIONS[relation].role) if word != actor])
        return Scene(kind, (actor, other), own(actor, other), relation=relation)
    return Scene("person", (pick(list(ACTIONS)),), ("",), person=pick(PERSONS))


def _with_role(role: str) -> list[str]:
    return [word for word, thing in THINGS.items() if thing.role == role]


def simple_caption(scene: Scene, template: int) -> str:
    """The scene as a sentence by one of five templates: "There are three apples."."""
    things, colors = scene.things, scene.colors
    number = _SINGLE
    if scene.kind == "count":
        number = _SINGLE if len(things) == 1 else _SEVERAL
        word = things[0] if len(things) == 1 else plural(things[0])
        phrase = f"{_NUMBERS[len(things)]} {word}"
    elif scene.kind == "two":
        left, right = (f"{c} {t}" for c, t in zip(colors, things, strict=True))
        phrase = f"{with_article(left)} next to {with_article(right)}"
    elif scene.kind == "action":
        doing = RELATIONS[scene.relation].doing
        phrase = f"{with_article(things[0])} {doing} {with_article(things[1])}"
    elif scene.kind == "person":
        phrase = f"a {scene.person} {things[0]}"
    else:
        phrase = with_article(f"{colors[0]} {things[0]}" if scene.kind == "color" else things[0])
    sentence = TEMPLATES[template % len(TEMPLATES)][number].format(phrase)
    return sentence[0].upper() + sentence[1:]


def complex_caption(scene: Scene) -> str:
    """The scene as keywords: "3 apples, exactly three, apple apple apple, two above one below, red
    apple, fruit, plain white background, sharp, best quality"."""
    things, n = scene.things, len(scene.things)
    named = [f"{c} {t}" if c else t for c, t in zip(scene.colors, things, strict=True)]
    kinds = [THINGS[thing].kind if scene.kind != "person" else "sport" for thing in things]
    if scene.kind == "two":
        words = [f"{named[0]} on the left", f"{named[1]} on the right", "exactly two things"]
        words += [*named, " and ".join(kinds)]
    elif scene.kind == "action":
        relation = RELATIONS[scene.relation]
        words = [f"{things[0]} {relation.doing} {things[1]}", relation.keywords.format(*things)]
        words += ["exactly two things", *named, " and ".join(kinds)]
    elif scene.kind == "person":
        words = [f"1 {scene.person} {things[0]}", "exactly one person", things[0]]
        words += [f"{scene.person}, whole body"]
    else:
        shown = named[0] if scene.kind == "color" else things[0]
        words = [f"{n} {plural(shown) if n > 1 else shown}", f"exactly {_NUMBERS[n]}"]
        words += [" ".join(things), *_arrangement(scene.rows), named[0], kinds[0]]
    words += ["plain white background", "sharp", "best quality"]
    return ", ".join(dict.fromkeys(words))


def _arrangement(rows: tuple[int, ...]) -> list[str]:
    if rows == (1,):
        return []
    if len(rows) == 1:
        return ["side by side" if rows[0] == 2 else f"{_NUMBERS[rows[0]]} in a row"]
    if len(set(rows)) == 1 and rows[0] > 1:
        return [f"{_NUMBERS[len(rows)]} rows of {_NUMBERS[rows[0]]}"]
    places = ("above", "below") if len(rows) == 2 else ("above", "between", "below")
    return [" ".join(f"{_NUMBERS[n]} {place}" for n, place in zip(rows, places, strict=True))]
