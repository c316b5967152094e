import io

import numpy as np
import pytest
from PIL import Image

from emu_jax.data.images import compose, cover, crop_corner, flipped, prepare
from emu_jax.errors import UserError

RNG = np.random.default_rng(0)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_an_exact_fit_is_untouched():
    pixels = picture(64, 64)
    image, sizes = prepare(encode(Image.fromarray(pixels)), (64, 64))
    assert image.dtype == np.uint8 and np.array_equal(image, pixels)
    assert sizes.dtype == np.int32 and sizes.tolist() == [64, 64, 0, 0, 64, 64]


def test_compositing_is_the_closed_form():
    pixels = picture(64, 64, 4)
    background = (10, 200, 30)
    image, _ = prepare(encode(Image.fromarray(pixels)), (64, 64), background=background)
    alpha = pixels[..., 3:] / 255
    exact = alpha * pixels[..., :3] + (1 - alpha) * np.array(background)
    assert np.abs(image - exact).max() <= 0.5 + 1e-6


def test_no_dark_fringe():
    # White under full alpha, black under none, on white: everything must stay white.
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[32:96, 32:96] = 255
    image, _ = prepare(encode(Image.fromarray(pixels)), (50, 50))
    assert image.min() == 255


def test_palette_grey_alpha_and_transparent_colour():
    red, clear = (255, 0, 0), (0, 0, 0)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*red, *clear])
    palette.putpixel((0, 0), 1)
    image, _ = prepare(encode(palette, transparency=1), (8, 8), background=(1, 2, 3))
    assert image[0, 0].tolist() == [1, 2, 3] and image[1, 1].tolist() == [255, 0, 0]
    grey = Image.new("LA", (8, 8), (100, 0))
    image, _ = prepare(encode(grey), (8, 8), background=(1, 2, 3))
    assert np.all(image == [1, 2, 3])
    keyed = Image.new("RGB", (8, 8), (9, 9, 9))
    image, _ = prepare(encode(keyed, transparency=(9, 9, 9)), (8, 8), background=(1, 2, 3))
    assert np.all(image == [1, 2, 3])


def test_sixteen_bits_cmyk_and_bilevel():
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    image, _ = prepare(encode(Image.fromarray(deep)), (2, 2))
    assert image[..., 0].tolist() == [[0, 100], [200, 255]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image, _ = prepare(encode(cmyk, "JPEG", quality=100), (8, 8))
    assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 3
    assert compose(Image.new("1", (2, 2), 1), (0, 0, 0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.zeros((48, 80, 3), np.uint8)
    upright[:24, :40] = 255  # only the top left corner is bright
    # What a camera stores so that the tag's transformation gives the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    image, sizes = prepare(data, (48, 80))
    assert np.array_equal(image, upright) and sizes[:2].tolist() == [48, 80]


def test_cover_keeps_the_aspect_ratio():
    assert cover(Image.new("RGB", (400, 200)), (64, 64)).size == (128, 64)
    assert cover(Image.new("RGB", (200, 400)), (64, 64)).size == (64, 128)
    assert cover(Image.new("RGB", (30, 20)), (64, 64)).size == (96, 64)
    assert cover(Image.new("RGB", (1000, 3)), (48, 80)).size == (16000, 48)
    for width in range(60, 130):  # rounding never leaves it short
        size = cover(Image.new("RGB", (width, 97)), (48, 80)).size
        assert size[0] >= 80 and size[1] >= 48 and (size[0] == 80 or size[1] == 48)


def test_sizes_tell_the_crop():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    data = encode(Image.fromarray(np.ascontiguousarray(ramp)))
    image, sizes = prepare(data, (100, 100))
    assert sizes.tolist() == [100, 200, 0, 50, 100, 100]
    assert np.array_equal(image, ramp[:, 50:150])
    lefts = set()
    for seed in range(400):
        image, sizes = prepare(data, (100, 100), random_crop=True, seed=seed)
        left = int(sizes[3])
        lefts.add(left)
        assert sizes[2] == 0 and np.array_equal(image, ramp[:, left : left + 100])
    assert min(lefts) == 0 and max(lefts) == 100 and len(lefts) > 80


def test_crop_corners_are_uniform():
    corners = [crop_corner((11, 13), (9, 9), seed) for seed in range(3000)]
    assert {top for top, _ in corners} == {0, 1, 2} and {left for _, left in corners} == set(
        range(5)
    )
    assert np.bincount([left for _, left in corners]) == pytest.approx(600, abs=90)


def test_flip_follows_the_seed_and_leaves_sizes():
    pixels = picture(64, 96)
    data = encode(Image.fromarray(pixels))
    turned = 0
    for seed in range(200):
        plain, sizes = prepare(data, (64, 64), seed=seed, random_crop=True)
        image, flipped_sizes = prepare(data, (64, 64), seed=seed, random_crop=True, flip=True)
        assert np.array_equal(sizes, flipped_sizes)
        assert np.array_equal(image, plain[:, ::-1] if flipped(seed) else plain)
        turned += bool(flipped(seed))
    assert 70 < turned < 130


def test_resizing_matches_an_exact_one():
    # A plane in x and y is kept by any normalised symmetric filter, away from the border.
    y, x = np.mgrid[:256, :256]
    plane = np.repeat(((x + y) / 2).astype(np.uint8)[..., None], 3, -1)
    image, _ = prepare(encode(Image.fromarray(plane)), (64, 64))
    y, x = np.mgrid[:64, :64] * 4 + 1.5
    assert np.abs(image[8:-8, 8:-8, 0] - (x + y)[8:-8, 8:-8] / 2).max() < 1.5


@pytest.mark.parametrize("data", [b"", b"no picture", encode(Image.new("RGB", (64, 64)))[:60]])
def test_damaged_pictures_raise_a_sentence(data):
    with pytest.raises(UserError):
        prepare(data, (64, 64))
