"""The contact sheet that does not say which model drew what."""

from collections import Counter

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.blind import blind_sheet

PROMPTS, EACH = [f"prompt {i}" for i in range(6)], 2
ROWS = [prompt for prompt in PROMPTS for _ in range(EACH)]


def images(first):
    """Image i of a model is of the gray value first + i."""
    return [np.full((8, 8, 3), first + i, np.uint8) for i in range(len(ROWS))]


@pytest.mark.parametrize("count", [4, 9, 12])
def test_every_model_has_as_many_images_and_the_key_names_them(count):
    models = {"one": images(20), "two": images(120)}
    sheet, key = blind_sheet(models, ROWS, count, seed=3, repeats=EACH)
    assert [one["number"] for one in key] == list(range(1, count + 1))
    shares = Counter(one["model"] for one in key)
    assert max(shares.values()) - min(shares.values()) <= 1
    prompts = Counter(one["prompt"] for one in key)
    assert max(prompts.values()) == (1 if count <= len(PROMPTS) else 2)
    assert all(ROWS[one["image"]] == one["prompt"] for one in key)
    # The images on the sheet are those of the key, in its order.
    values = np.asarray(sheet)[..., 0]
    for place, one in enumerate(key[: min(count, 10)]):
        expected = models[one["model"]][one["image"]][0, 0, 0]
        assert values[6 + 30, 6 + place * (128 + 6) + 30] == expected
    assert not sheet.info  # no metadata
    assert blind_sheet(models, ROWS, count, seed=3, repeats=EACH)[1] == key
    assert blind_sheet(models, ROWS, count, seed=4, repeats=EACH)[1] != key


def test_there_are_not_more_images_than_drawn():
    with pytest.raises(UserError, match="needs as many images of a model, not 12: lower --blind"):
        blind_sheet({"one": images(0)}, ROWS, 13, seed=0, repeats=EACH)
