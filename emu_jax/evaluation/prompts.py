"""The default prompts of a comparison."""

from collections.abc import Sequence

from emu_jax.errors import UserError

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


def kept_prompts(captions: Sequence[Sequence[str]], count: int | None) -> list[str]:
    """``count`` prompts of different images: first those of KEPT_CONCEPTS, then others in order.

    ``captions`` are those of each image; a natural phrase ("a fox") is preferred to a bare name.
    ``count`` None: 100, or as many as there are.

    Raises:
      UserError: there are fewer than ``count``, or none.
    """
    wanted = count or _DEFAULT_COUNT
    known = [prompt for prompt in KEPT_CONCEPTS if any(prompt in own for own in captions)]
    taken = {next(i for i, own in enumerate(captions) if prompt in own) for prompt in known}
    phrases = (
        next((text for text in own if text.startswith(("a ", "an ", "some "))), own[0])
        for i, own in enumerate(captions)
        if i not in taken and len(own)
    )
    others = [text for text in dict.fromkeys(phrases) if text not in known]
    # At equal steps, so that all groups of things are among them.
    step = max(1, len(others) // max(1, wanted - len(known)))
    prompts = [*known, *others[::step]][:wanted]
    if count and len(prompts) < count:
        raise UserError(f"There are only {len(prompts)} prompts, not {count}: lower --count.")
    if not prompts:
        raise UserError("The images have no captions: give prompts with --prompts=FILE.")
    return prompts
