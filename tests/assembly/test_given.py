"""The images beside a prompt: where they lie when an image to start from is padded."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emu_jax.assembly.cascade import conditioning
from emu_jax.assembly.given import NOTHING, Given, Laid
from emu_jax.assembly.starting import Placement, StartImage
from emu_jax.data.canny import canny
from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet

PLACED = Placement(inside=(32, 48), shape=(48, 48))


def square(height, width):
    """A black square in the middle of a white image."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[height // 4 : -height // 4, width // 4 : -width // 4] = 0
    return image


def laid(factor=1):
    return Laid(StartImage(square(64, 96)), PLACED, factor, (255, 255, 255))


def given(hint, laid, file=""):
    (found,) = Given(file).images([hint], hint, PromptSet(("a square",)), laid)[hint]
    return found


def test_the_hint_is_that_of_the_start_image_in_its_place():
    hint = given("canny", laid())
    assert hint.shape == (48, 48, 3)
    np.testing.assert_array_equal(hint, canny(laid().placed.lay(square(64, 96))))
    # The square is 16 x 24 pixels, 8 below the image's upper edge, which is 8 below the shape's.
    down, across = np.nonzero(hint[..., 0])
    assert abs(down.min() - 16) <= 1 and abs(down.max() - 31) <= 1
    assert abs(across.min() - 12) <= 1 and abs(across.max() - 35) <= 1


def test_a_hint_from_a_file_lies_where_the_start_image_does(tmp_path):
    Image.fromarray(square(32, 48)).save(tmp_path / "depth.png")
    hint = given("depth", laid(), str(tmp_path / "depth.png"))
    np.testing.assert_array_equal(hint[8:-8], square(32, 48))
    np.testing.assert_array_equal(hint[:8], 255)


def test_the_first_stage_of_a_cascade_takes_it_smaller():
    assert given("canny", laid(factor=2)).shape == (24, 24, 3)
    data = io.BytesIO()
    Image.fromarray(square(64, 96)).save(data, "PNG")
    np.testing.assert_array_equal(laid(2)(data.getvalue(), "canny"), laid(2).own["canny"])


def test_an_inpainting_model_starts_from_no_other_image(unchecked_arrays):
    config = SimpleNamespace(data=SimpleNamespace(background=(255, 255, 255)))
    model: Any = SimpleNamespace(further=("image", "mask"), hint="", config=config)
    start = StartImage(square(64, 96))
    with pytest.raises(UserError, match="takes image and mask beside the prompt, and cannot start"):
        conditioning(model, NOTHING, PromptSet(("a square",)), start=start)
