"""The concept table that all styles of the `emoji` data set share: things, captions, split.

A *form* is one emoji without skin tone and without the presentation selector U+FE0F ("woman
astronaut"); a *concept* joins the forms that differ only in gender, person, direction or o'clock
("astronaut"). Both are written as lower-case code points joined by "-". `emoji_concepts.tsv` lists
the forms with Unicode's group, name and keywords and which of the two pinned packages draws them,
so that everything below is a pure function of the committed table and equal in every style.

Concepts that both OpenMoji and Fluent draw, except flags, are ranked by a hash and split in parts:

    held_out   the first 95: never trained on, for losses only
    kept       the next 500: pre-trained on, never tuned on
    tuned      the rest; its Fluent images are the needles, ranked from 0

There are only 1,599 such forms of 1,378 concepts, so 1,000 needles exist only if nearly all forms
that share a concept are tuned: a concept of several forms leaves the tuned part only with a small
probability (1 - `_STAY`). A concept that only one of the two draws is kept, because there is
nothing to tune on; flags are split by the same hash but are never needles.
"""

import csv
import dataclasses
import functools
import hashlib
import itertools
import re
from importlib import resources

HELD_OUT, KEPT = 95, 500
NEEDLES = 1000
_STAY = 0.95  # share of the concepts of several forms that are tuned whatever their rank

FLAGS, BRANDS, SIGNS = "flags", "brands", "signs"

_JOINER = "200d"
_DROPPED = frozenset({"fe0f", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
_SIGNS_OF_A_VARIANT = frozenset({"2640", "2642", "27a1"})  # female, male, facing right
_ADULT = "1f9d1"
_FAMILY = frozenset({"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"})
_SAME = {
    "1f466": "1f9d2", "1f467": "1f9d2",  # boy, girl: child
    "1f468": _ADULT, "1f469": _ADULT,  # man, woman: person
    "1f474": "1f9d3", "1f475": "1f9d3",  # old man, old woman: older person
    "1f46c": "1f46b", "1f46d": "1f46b",  # two people holding hands
    "1f385": "1f9d1-200d-1f384", "1f936": "1f9d1-200d-1f384",  # Santa and Mrs. Claus
    "1f934": "1fac5", "1f478": "1fac5",  # prince, princess: person with crown
    "1f57a": "1f483",  # man dancing: woman dancing
    "1f930": "1fac4", "1fac3": "1fac4",  # pregnant person
    **{f"{c:x}": "1f550" for c in range(0x1F551, 0x1F568)},  # twenty-four clock faces
}  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words for a look rather than a thing. The style must come from the weights, not from the prompt.
STYLE_WORDS = _words(
    "emoji emojis emoticon openmoji fluent noto icon icons iconic pictogram clipart cartoon comic "
    "3d 2d flat outline outlined vector sticker render rendered rendering illustration drawing "
    "glossy shaded matte sketch style stylized skin"
)

_MASS = _words(
    "rice bread cheese bacon meat butter salt sushi honey water fire fog snow money popcorn "
    "spaghetti champagne sake tea milk broccoli garlic ginger wood coral"
)


_SHAPES = _words("heart circle square hexagon diamond triangle arrow star flag sign mark")


@dataclasses.dataclass(frozen=True)
class Form:
    """One emoji without skin tone. `needle` is its rank among the tuned Fluent images, or -1."""

    code: str
    concept: str
    group: str
    name: str
    keywords: tuple[str, ...]
    phrases: tuple[str, ...]
    styles: frozenset[str]
    part: str = "kept"
    needle: int = -1


def plain(code: str) -> str:
    """`code` in lower case without leading zeros, skin tones and presentation selectors."""
    points = (c.lstrip("0") for c in code.lower().replace("_", "-").split("-"))
    return "-".join(c for c in points if c not in _DROPPED)


def has_skin_tone(code: str) -> bool:
    return not _DROPPED.isdisjoint(set(code.lower().split("-")) - {"fe0f"})


def concept_of(code: str) -> str:
    """The concept of a form: without gender, person, direction and hour."""
    parts = [p.strip("-") for p in plain(code).split(_JOINER)]
    parts = [p for p in parts if p not in _SIGNS_OF_A_VARIANT]
    if len(parts) == 1:
        return _SAME.get(parts[0], parts[0])
    if set(parts) <= _FAMILY:
        return "1f46a"
    if "2764" in parts and parts[0] in _FAMILY:
        return "1f48f" if "1f48b" in parts else "1f491"  # kiss, couple with heart
    if parts[0] in _FAMILY and parts[1] == "1f91d":
        return "1f46b"
    if parts[0] in ("1f468", "1f469"):
        parts[0] = _ADULT
    return f"-{_JOINER}-".join(parts)


@functools.cache
def forms() -> dict[str, Form]:
    """Every form by its code, in the table's (Unicode's) order, with part and needle rank."""
    text = resources.files("emu_jax.data").joinpath("emoji_concepts.tsv").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    styles = {"o": "openmoji", "f": "fluent"}
    table = [
        Form(
            code=row["code"],
            concept=concept_of(row["code"]),
            group=row["group"],
            name=row["name"],
            keywords=tuple(filter(None, row["keywords"].split("|"))),
            phrases=tuple(filter(None, row["phrases"].split("|"))),
            styles=frozenset(styles[s] for s in row["styles"]),
        )
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    ]
    parts = _parts(table)
    table = [dataclasses.replace(f, part=parts[f.concept]) for f in table]
    ranks = {code: rank for rank, code in enumerate(_needles(table))}
    return {f.code: dataclasses.replace(f, needle=ranks.get(f.code, -1)) for f in table}


def _draw(concept: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on the concept and on its purpose."""
    digest = hashlib.sha256(f"{purpose}:{concept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _parts(table: list[Form]) -> dict[str, str]:
    concepts: dict[str, list[Form]] = {}
    for form in table:
        concepts.setdefault(form.concept, []).append(form)
    parts = dict.fromkeys(concepts, "kept")
    shared = []
    for concept, members in concepts.items():
        if {"openmoji", "fluent"} <= frozenset().union(*(f.styles for f in members)):
            if members[0].group == FLAGS:
                rank = _draw(concept, "part")
                parts[concept] = "held_out" if rank < 0.06 else "kept" if rank < 0.43 else "tuned"
            else:
                shared.append(concept)
    stays = {c for c in shared if len(concepts[c]) > 1 and _draw(c, "stay") < _STAY}
    shared.sort(key=lambda c: (c in stays, _draw(c, "part")))
    for rank, concept in enumerate(shared):
        parts[concept] = (
            "held_out" if rank < HELD_OUT else "kept" if rank < HELD_OUT + KEPT else "tuned"
        )
    return parts


def _needles(table: list[Form]) -> list[str]:
    """Codes of the needles, taken in turn from the groups; first forms of concepts come first."""
    firsts: dict[str, list[Form]] = {}
    others: dict[str, list[Form]] = {}
    seen = set()
    for form in sorted(table, key=lambda f: f.code != f.concept):
        if form.part == "tuned" and "fluent" in form.styles and form.group != FLAGS:
            rows = others if form.concept in seen else firsts
            rows.setdefault(form.group, []).append(form)
            seen.add(form.concept)
    order = []
    for rows in (firsts, others):
        ranked = [sorted(rows[g], key=lambda f: _draw(f.code, "needle")) for g in sorted(rows)]
        for round_ in itertools.zip_longest(*ranked):
            order += [form.code for form in round_ if form is not None]
    return order[:NEEDLES]


def captions(form: Form, aliases: tuple[str, ...] = ()) -> list[str]:
    """Distinct captions without style words: the Unicode name first, then natural phrases."""
    candidates = [form.name, *_natural(form), *form.phrases, *aliases]
    words = [k for k in form.keywords if k not in re.findall(r"[a-z'-]+", form.name)]
    pairs = [words[i : i + 2] for i in range(0, min(len(words), 6), 2)]
    candidates += [", ".join([form.name, *pair]) for pair in pairs]
    kept = []
    for caption in candidates:
        caption = " ".join(caption.lower().split())
        if caption and caption not in kept and not is_styled(caption):
            kept.append(caption)
    return kept


def is_styled(caption: str) -> bool:
    """Whether the caption contains a style word."""
    return not STYLE_WORDS.isdisjoint(re.findall(r"[a-z0-9]+", caption.lower()))


def _natural(form: Form) -> list[str]:
    """The name as a noun phrase: "a fox", "an orange", "some grapes", "the flag of france"."""
    head, colon, rest = form.name.partition(": ")
    if head == "flag":
        return [f"the flag of {rest}", f"{rest} flag"]
    if head == "keycap":
        return [f"a key with {rest} on it"]
    if head == "family":
        return [f"a family with {rest.replace(', ', ' and ')}"]
    if colon:  # "man: red hair", "couple with heart: woman, man"
        return [f"a {head} with {rest}" if "hair" in rest else f"a {head}, {rest}"]
    if form.group in (FLAGS, SIGNS, BRANDS, "symbols"):
        if form.name.endswith(" button"):
            return [f"a button with {form.name.removesuffix(' button')} on it"]
        return [with_article(form.name)] if form.name.split()[-1] in _SHAPES else []
    noun = re.split(r" (?:with|of|in|on|and|at|over|without|facing|behind) ", form.name)[0]
    last = noun.split()[-1]
    if noun.split()[0] in ("people", "men", "women", "two"):
        return []
    if last in _MASS or (last.endswith("s") and not last.endswith(("ss", "us", "is", "bus"))):
        return [f"some {form.name}"]
    return [with_article(form.name)]


def with_article(name: str) -> str:
    """ "a fox", "an orange"."""
    vowel = re.match(r"(?!eu|one\b|uni)[aeiou]|x-ray", name)
    return f"{'an' if vowel else 'a'} {name}"
