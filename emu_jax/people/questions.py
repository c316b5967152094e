"""What annotators are asked, and what their answers mean.

Answers name the sides as the annotator saw them, A and B. On the side-independent scale of
:mod:`emu_jax.evaluation.preferences` the second image of a pair wins, ties or loses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emu_jax.evaluation.preferences import LOSE, TIE, WIN


@dataclass(frozen=True)
class Question:
    """A question about pairs of images."""

    answers: tuple[str, ...]
    shows_prompt: bool
    votes: int  # of a pair, by default: as in Emu's evaluation


APPEAL, FAITHFULNESS = "appeal", "faithfulness"
QUESTIONS: Mapping[str, Question] = {  # in the order in which every annotator gets them
    APPEAL: Question(("a", "tie", "b"), shows_prompt=False, votes=5),
    FAITHFULNESS: Question(("a", "both", "neither", "b"), shows_prompt=True, votes=3),
}


def unswapped(answer: str, swapped: bool) -> str:
    """The answer as if A had been the first image."""
    return {"a": "b", "b": "a"}.get(answer, answer) if swapped else answer


def outcome(answer: str, swapped: bool) -> int:
    """Whether the second image of a pair wins, ties or loses. "both" and "neither" are ties."""
    return {"a": LOSE, "b": WIN}.get(unswapped(answer, swapped), TIE)
