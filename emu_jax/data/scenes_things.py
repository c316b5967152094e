"""What the data set `scenes` draws: sixty things of one color each, and 25 actions of persons.

A thing is an emoji that a drawing of 20 pixels still shows. Its color is the hue family that covers
at least four fifths of the colored area of its OpenMoji drawing. OpenMoji's flat palette has a
light and a dark tone of every family (`HUES`), so exchanging the two tones recolors a drawing
exactly. Fluent's drawings are shaded: `fluent` is the color of those that have one hue, which can
be turned. It is empty for the others, which are drawn as they are only.
"""

from dataclasses import dataclass

# Color -> its light and its dark tone in OpenMoji's palette.
HUES = {
    "red": ("#ea5a47", "#d22f27"),
    "orange": ("#f4aa41", "#e27022"),
    "yellow": ("#fcea2b", "#f1b31c"),
    "green": ("#b1cc33", "#5c9e31"),
    "blue": ("#92d3f5", "#61b2e4"),
    "purple": ("#b399c8", "#8967aa"),
}
ACTOR, RIDDEN, KICKED, COVER, HELD = "actor", "ridden", "kicked", "cover", "held"


@dataclass(frozen=True)
class Thing:
    """`word` is what captions call the thing, `name` the CLDR name of its emoji, `kind` a broader
    word. `role` is the part that it can have in an action.
    """

    word: str
    name: str
    kind: str
    role: str
    openmoji: str
    fluent: str = ""

    def color(self, style: str) -> str:
        """The thing's own color in a style; empty: several."""
        return self.openmoji if style == "openmoji" else self.fluent


_THINGS = (
    Thing("monkey", "monkey face", "animal", ACTOR, "orange"),
    Thing("dog", "dog", "animal", ACTOR, "orange", "orange"),
    Thing("fox", "fox", "animal", ACTOR, "orange", "orange"),
    Thing("cat", "cat", "animal", ACTOR, "orange", "orange"),
    Thing("lion", "lion", "animal", ACTOR, "orange"),
    Thing("camel", "camel", "animal", ACTOR, "orange", "orange"),
    Thing("giraffe", "giraffe", "animal", ACTOR, "orange", "orange"),
    Thing("fish", "fish", "animal", ACTOR, "blue", "blue"),
    Thing("whale", "whale", "animal", ACTOR, "blue", "blue"),
    Thing("butterfly", "butterfly", "animal", ACTOR, "blue"),
    Thing("frog", "frog", "animal", ACTOR, "green"),
    Thing("turtle", "turtle", "animal", ACTOR, "green"),
    Thing("snake", "snake", "animal", ACTOR, "green", "green"),
    Thing("dinosaur", "t-rex", "animal", ACTOR, "green", "green"),
    Thing("octopus", "octopus", "animal", ACTOR, "red"),
    Thing("crab", "crab", "animal", ACTOR, "red", "red"),
    Thing("shrimp", "shrimp", "animal", ACTOR, "red", "red"),
    Thing("ladybug", "lady beetle", "animal", ACTOR, "red"),
    Thing("jellyfish", "jellyfish", "animal", ACTOR, "purple", "blue"),
    Thing("chick", "baby chick", "animal", ACTOR, "yellow", "yellow"),
    Thing("canoe", "canoe", "vehicle", RIDDEN, "blue"),
    Thing("sailboat", "sailboat", "vehicle", RIDDEN, "blue"),
    Thing("taxi", "taxi", "vehicle", RIDDEN, "yellow"),
    Thing("car", "automobile", "vehicle", RIDDEN, "red"),
    Thing("racing car", "racing car", "vehicle", RIDDEN, "red"),
    Thing("pickup truck", "pickup truck", "vehicle", RIDDEN, "red"),
    Thing("motorcycle", "motorcycle", "vehicle", RIDDEN, "red"),
    Thing("airplane", "small airplane", "vehicle", RIDDEN, "orange"),
    Thing("basketball", "basketball", "ball", KICKED, "orange", "orange"),
    Thing("football", "rugby football", "ball", KICKED, "orange", "orange"),
    Thing("bucket", "bucket", "tool", KICKED, "blue", "blue"),
    Thing("drum", "drum", "instrument", KICKED, "red"),
    Thing("umbrella", "umbrella", "object", COVER, "purple", "purple"),
    Thing("mushroom", "mushroom", "plant", COVER, "red", "red"),
    Thing("tent", "tent", "object", COVER, "yellow", "green"),
    Thing("fir tree", "evergreen tree", "plant", COVER, "green", "green"),
    Thing("tree", "deciduous tree", "plant", COVER, "green", "green"),
    Thing("apple", "red apple", "fruit", HELD, "red", "red"),
    Thing("pear", "pear", "fruit", HELD, "green"),
    Thing("strawberry", "strawberry", "fruit", HELD, "red"),
    Thing("lemon", "lemon", "fruit", HELD, "yellow", "yellow"),
    Thing("banana", "banana", "fruit", HELD, "yellow", "yellow"),
    Thing("eggplant", "eggplant", "vegetable", HELD, "purple", "purple"),
    Thing("carrot", "carrot", "vegetable", HELD, "orange"),
    Thing("chili pepper", "hot pepper", "vegetable", HELD, "red"),
    Thing("croissant", "croissant", "food", HELD, "orange", "orange"),
    Thing("lollipop", "lollipop", "food", HELD, "red"),
    Thing("heart", "heart suit", "shape", HELD, "red", "red"),
    Thing("star", "star", "shape", HELD, "yellow", "yellow"),
    Thing("trophy", "trophy", "prize", HELD, "yellow"),
    Thing("bell", "bell", "instrument", HELD, "yellow", "yellow"),
    Thing("key", "key", "tool", HELD, "orange", "yellow"),
    Thing("crown", "crown", "jewelry", HELD, "yellow", "orange"),
    Thing("gem", "gem stone", "jewelry", HELD, "blue", "blue"),
    Thing("balloon", "balloon", "toy", HELD, "red", "red"),
    Thing("light bulb", "light bulb", "tool", HELD, "yellow", "yellow"),
    Thing("purse", "purse", "bag", HELD, "purple", "red"),
    Thing("backpack", "backpack", "bag", HELD, "red", "red"),
    Thing("book", "closed book", "object", HELD, "red", "red"),
    Thing("t-shirt", "t-shirt", "clothing", HELD, "blue", "green"),
)
THINGS = {thing.word: thing for thing in _THINGS}

# What a person does, as captions say it -> the emoji's CLDR name without the person.
ACTIONS = {
    "surfing": "surfing",
    "rowing a boat": "rowing boat",
    "swimming": "swimming",
    "bouncing a ball": "bouncing ball",
    "lifting weights": "lifting weights",
    "riding a bike": "biking",
    "turning a cartwheel": "cartwheeling",
    "playing water polo": "playing water polo",
    "playing handball": "playing handball",
    "juggling": "juggling",
    "climbing": "climbing",
    "playing golf": "golfing",
    "running": "running",
    "walking": "walking",
    "kneeling": "kneeling",
    "bowing": "bowing",
    "raising a hand": "raising hand",
    "covering the face": "facepalming",
    "shrugging": "shrugging",
    "meditating": "in lotus position",
    "getting a haircut": "getting haircut",
    "getting a massage": "getting massage",
    "feeding a baby": "feeding baby",
    "walking with a cane": "with white cane",
    "sitting in a wheelchair": "in manual wheelchair",
}
PERSONS = ("person", "man", "woman")

_UNCHANGED = ("fish", "shrimp", "jellyfish")


def plural(word: str) -> str:
    """ "apples", "butterflies", "octopuses"."""
    if word in _UNCHANGED:
        return word
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
