"""Prompts that models are compared by when none are given."""

# Everyday concepts of the emoji sets' "kept" part: every style shows them in pre-training and no
# quality-tuning ever does, so they tell what tuning gives to, and takes from, all that it does not
# show. Each is one of its pictures' captions.
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
