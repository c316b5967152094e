"""The statistics that the SUR-adapter paper gives of SURD, for any list of pairs: lengths, frequent
words and frequent phrases of simple captions and complex prompts, as a page of HTML.

Words are counted without a tagger of parts of speech, so the list has nouns, adjectives and verbs
alike; a list of stop words leaves out those without content. A phrase of a complex prompt is a part
between commas; one of a simple caption is two or three words in a row that neither begin nor end
with a stop word. A word or phrase counts once in each text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from etils import epath

from emu_jax.errors import UserError
from emu_jax.evaluation import curves
from emu_jax.evaluation.report import Charts, Section, Table, Text, write_report

MOST_WORDS = 300  # of a text in the histogram of lengths, as in the paper
_SHOWN = 20
_LISTED = 100
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_WEIGHTS = re.compile(r"<[^>]*>|:\s*[-+]?\d*\.?\d+(?=\s*[)\]])|[()\[\]{}]+|[+-]+(?=\s|$)")
_STOP = """
a about above across after again against all along also am an and any are around as at away back be
because been before behind being below beside between both but by can could did do does doing down
during each few for from further had has have having he her here hers him his how i if in into is it
its itself just like made me more most my near next no nor not of off on one once only onto or other
our out over own same she should so some such than that the their them then there these they this
those through to together too toward towards two under until up upon very was we were what when
where which while who whom why will with within without would you your
"""
STOP_WORDS = frozenset(_STOP.split())
_HOW = (
    "A word is a run of letters and digits, in lower case. Frequent words leave out a list of "
    f"{len(STOP_WORDS)} stop words and single letters and digits. They are not only nouns: no "
    "tagger of parts of speech is used. A phrase of a complex prompt is a part between commas, "
    "without brackets and weights; a phrase of a simple caption is two or three words in a row "
    "that neither begin nor end with a stop word. Numbers are texts that have the word or phrase."
)


@dataclass(frozen=True)
class Statistics:
    """Of one list of texts; counts are of texts, the most frequent ones first."""

    lengths: np.ndarray
    words: list[tuple[str, int]]
    phrases: list[tuple[str, int]]


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def comma_phrases(text: str) -> list[str]:
    """The parts between commas, without weights as image tools write them: "(sharp:1.3)"."""
    parts = (" ".join(_WEIGHTS.sub(" ", part).split()) for part in re.split(r"[,;|\n]", text))
    return [part.lower().strip(" .") for part in parts if part.strip(" .")]


def neighbors(text: str) -> list[str]:
    """Two or three words in a row of one sentence part, with content words at both ends."""
    found = []
    for part in re.split(r"[,.;:!?|\n]", text):
        run = words(part)
        for size in (2, 3):
            grams = (run[i : i + size] for i in range(len(run) - size + 1))
            found += [" ".join(x) for x in grams if _content(x[0]) and _content(x[-1])]
    return found


def statistics(texts: Sequence[str], phrases: Callable[[str], Iterable[str]]) -> Statistics:
    by_word: Counter[str] = Counter()
    by_phrase: Counter[str] = Counter()
    for text in texts:
        by_word.update({word for word in words(text) if _content(word)})
        by_phrase.update(set(phrases(text)))
    return Statistics(
        np.array([len(words(text)) for text in texts]), _most(by_word), _most(by_phrase)
    )


def write_statistics(
    path: epath.PathLike, name: str, simple: Sequence[str], complex_: Sequence[str]
) -> epath.Path:
    """The page of a list of pairs.

    Raises:
      UserError: there are none.
    """
    if not simple:
        raise UserError(f"{name} has no pairs of a simple caption and a complex prompt.")
    kinds = {
        "Simple captions": statistics(simple, neighbors),
        "Complex prompts": statistics(complex_, comma_phrases),
    }
    return write_report(path, f"Texts of {name}", _sections(kinds), f"{len(simple):,} pairs")


def _sections(kinds: dict[str, Statistics]) -> list[Section]:
    columns = ["words", "mean", "median", "90 % of the texts have at most", "maximum"]
    rows = [
        [kind, x.lengths.mean(), *np.quantile(x.lengths, (0.5, 0.9)), x.lengths.max()]
        for kind, x in kinds.items()
    ]
    lengths = {
        kind: curves.histogram(
            np.minimum(x.lengths, MOST_WORDS), title=kind, x_label="words", color=i
        )
        for i, (kind, x) in enumerate(kinds.items())
    }
    sections: list[Section] = [
        Text("How it is counted", _HOW),
        Table("Lengths", columns, rows),
        Charts(
            "Histograms of lengths",
            (),
            lengths,
            f"The number of texts by their number of words; more than {MOST_WORDS} words count as "
            f"{MOST_WORDS}.",
        ),
    ]
    for title, part in (("Frequent words", "words"), ("Frequent phrases", "phrases")):
        plots = {
            kind: curves.bar_plot(dict(counts[:_SHOWN]), title=f"{title}: {kind}", color=i)
            for i, (kind, x) in enumerate(kinds.items())
            if (counts := getattr(x, part))
        }
        sections.append(Charts(title, (), plots))
    for kind, x in kinds.items():
        pairs = zip_longest(x.words, x.phrases, fillvalue=("", None))
        rows = [[*word, *phrase] for word, phrase in pairs]
        sections.append(Table(f"{kind}, in numbers", ["word", "texts", "phrase", "texts"], rows))
    return sections


def _content(word: str) -> bool:
    return len(word) > 1 and word not in STOP_WORDS


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    """By count, then by the alphabet."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
