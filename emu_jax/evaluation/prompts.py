"""The default prompts of a comparison."""

from dataclasses import replace

from emu_jax.data.mixture import Selection
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet, data_prompts

# Everyday concepts of the emoji sets' "kept" part: pre-training has them in every style and
# quality-tuning never does, so they show how tuning changes the concepts that it does not contain.
# Each is a caption of its image.
KEPT_CONCEPTS = (
    "a red fox",
    "a panda",
    "a koala",
    "a rabbit face",
    "a crab",
    "a tropical fish",
    "a slice of pizza",
    "a hamburger",
    "a doughnut",
    "a pineapple",
    "a bunch of grapes",
    "a carrot",
    "a yellow taxi",
    "a helicopter",
    "a delivery truck",
    "a red rose",
    "a sunflower",
    "a crescent moon",
    "a volcano",
    "a castle",
    "an acoustic guitar",
    "a golden crown",
    "a top hat",
    "a ghost",
    "a grinning face",
    "a red heart",
)


_DEFAULT_COUNT = 100


def kept_prompts(selection: Selection, count: int | None) -> PromptSet:
    """``count`` prompts of different images: first those of KEPT_CONCEPTS, then others in order.

    A natural phrase ("a fox") is preferred to a bare name. ``count`` None: 100, or as many as there
    are.

    Raises:
      UserError: there are fewer than ``count``, or none.
    """
    wanted = count or _DEFAULT_COUNT
    found, captions = data_prompts(selection), selection.texts()
    first: dict[str, int] = {}  # caption -> row of the first image that has it
    for row, record in enumerate(found.real.records if found.real else ()):
        for text in captions[record]:
            first.setdefault(text.strip(), row)
    known = [prompt for prompt in KEPT_CONCEPTS if prompt in first]
    taken = {first[prompt] for prompt in known}
    phrases = (prompt for row, prompt in enumerate(found.prompts) if row not in taken)
    others = [text for text in dict.fromkeys(phrases) if text not in known]
    # At equal steps, so that all groups of things are among them.
    step = max(1, len(others) // max(1, wanted - len(known)))
    prompts = [*known, *others[::step]][:wanted]
    if count and len(prompts) < count:
        raise UserError(f"There are only {len(prompts)} prompts, not {count}: lower --count.")
    return replace(found.rows(first[prompt] for prompt in prompts), prompts=tuple(prompts))
