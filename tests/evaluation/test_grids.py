import numpy as np
import pytest
from PIL import ImageFont

from emu_jax.errors import UserError
from emu_jax.evaluation import fonts
from emu_jax.evaluation.grids import grid, wrap


def pictures(n, h=16, w=24):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, 3), np.uint8)


@pytest.mark.parametrize(("columns", "scale"), [(None, 1), (1, 1), (4, 2), (9, 1)])
def test_every_picture_is_there_pixel_for_pixel(columns, scale):
    images = pictures(5)
    sheet = np.asarray(grid(images, columns=columns, scale=scale))
    for image in images.repeat(scale, 1).repeat(scale, 2):
        windows = np.lib.stride_tricks.sliding_window_view(sheet, image.shape)
        assert (windows == image).all((-1, -2, -3)).sum() == 1


def test_rows_are_read_like_text():
    images = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (10, 20, 30)])
    sheet = np.asarray(grid(images, columns=2))[..., 0]
    (y1, x1), (y2, x2), (y3, x3) = (np.argwhere(sheet == shade)[0] for shade in (10, 20, 30))
    assert y1 == y2 < y3 and x1 == x3 < x2


def test_captions_put_ink_under_their_picture_only():
    images = np.full((2, 16, 64, 3), 255, np.uint8)
    plain, sheet = grid(images, columns=2), np.asarray(grid(images, ["fox", ""], 2, scale=1))
    assert sheet.shape[0] > plain.height
    ys, xs = np.nonzero((sheet < 200).all(-1))
    assert ys.min() >= 6 + 16 and xs.max() < 6 + 64


def test_long_captions_are_broken_then_cut():
    font = ImageFont.load_default(size=12)
    lines = wrap("a very long caption " * 10, 80, font)
    assert len(lines) == 3 and lines[-1].endswith("...")
    assert all(font.getlength(line) <= 80 for line in lines)
    assert wrap("a red fox", 200, font) == ["a red fox"]
    assert wrap("x" * 300, 80, font)[0].endswith("...")


@pytest.mark.usefixtures("unchecked_arrays")
def test_bad_pictures_are_refused():
    with pytest.raises(UserError, match="float32"):
        grid(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(UserError, match="2 captions"):
        grid(pictures(1), ["a", "b"])


def test_captions_have_room_under_small_images():
    images = pictures(2, 16, 16)
    assert grid(images, ["fox", "cat"], columns=2).width > 2 * 128 > grid(images, columns=2).width


def test_other_scripts_are_drawn_or_named(capsys, monkeypatch):
    fonts._said.clear()
    face = fonts.Typeface(12)
    assert [part for _, part in face._runs("a fox")] == ["a fox"]
    ((font, _),) = face._runs("лиса fox")
    box = fonts._glyph(font, fonts._NONE)
    drawn = {fonts._glyph(font, c) for c in "лиса"}
    if fonts._files("л"):  # a font of this machine has Cyrillic
        assert box not in drawn and not capsys.readouterr().err
    fonts._font.cache_clear()
    monkeypatch.setattr(fonts, "_files", lambda character: [])
    grid(pictures(2), ["狐 fox", "🦊 лиса"])
    said = capsys.readouterr().err
    assert all(name in said for name in ("CJK", "Cyrillic", "emoji")) and "Latin" not in said
    grid(pictures(1), ["狐"])
    assert not capsys.readouterr().err  # once
    fonts._font.cache_clear()
