"""What annotators are asked, and what their answers mean.

Of pairs, answers name the sides as the annotator saw them, A and B. On the side-independent scale
of :mod:`emu_jax.evaluation.preferences` the second image of a pair wins (1), ties (0) or loses
(-1).

Curation asks one question about single images, that of its stage: is it clearly bad; is it among
the best, and what is wrong with it by the rubric; what does it show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question about pairs of images."""

    answers: tuple[str, ...]
    shows_prompt: bool
    votes: int  # of a pair, by default: as in Emu's evaluation


COMPARE = "compare"  # the kind of studies of preference; others are stages of curation
APPEAL, FAITHFULNESS = "appeal", "faithfulness"
QUESTIONS: Mapping[str, Question] = {  # in the order in which every annotator gets them
    APPEAL: Question(("a", "tie", "b"), shows_prompt=False, votes=5),
    FAITHFULNESS: Question(("a", "both", "neither", "b"), shows_prompt=True, votes=3),
}


RECALL, PRECISION, CAPTIONS = "recall", "precision", "captions"
STAGES: Mapping[str, int] = {RECALL: 1, PRECISION: 3, CAPTIONS: 1}  # and votes of an image
FAULTS = ("composition", "light", "color", "subject", "story")  # the rubric of PRECISION
LONGEST_CAPTION = 2000  # characters


def accepts(question: str, answer: Any) -> bool:
    """Whether this is an answer to the question."""
    if question in QUESTIONS:
        return answer in QUESTIONS[question].answers
    match question, answer:
        case "recall", "good" | "bad":
            return True
        case "precision", {"keep": bool(), "faults": list(faults), **rest}:
            known = [fault for fault in FAULTS if fault in faults]
            return not rest and len(known) == len(faults)
        case "captions", {"caption": str(caption), **rest}:
            return not rest and 0 < len(caption.strip()) <= LONGEST_CAPTION
    return False


def unswapped(answer: str, swapped: bool) -> str:
    """The answer as if A had been the first image."""
    return {"a": "b", "b": "a"}.get(answer, answer) if swapped else answer


def outcome(answer: str, swapped: bool) -> int:
    """Whether the second image of a pair wins, ties or loses. "both" and "neither" are ties."""
    return {"a": -1, "b": 1}.get(unswapped(answer, swapped), 0)
