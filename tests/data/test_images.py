import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from emu_jax.data import images
from emu_jax.data.decode import open_image
from emu_jax.data.images import check, compose, cover, crop_corner, flipped, prepare
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


def png(values, bits, color_type, transparent):
    """One row of a PNG, written by hand: Pillow writes neither 2 bits nor a 16-bit tRNS."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    width = len(values) // (3 if color_type == 2 else 1)
    header = struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0)
    packed = "".join(f"{value:0{bits}b}" for value in values)
    row = bytes(int(packed[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(packed), 8))
    color = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", color)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunks
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png([0, 1000, 30000, 65535], 16, 0, [1000]), [[0] * 3, (9, 8, 7), [117] * 3, [255] * 3]),
        (png([0, 1, 2, 3], 2, 0, [2]), [[0] * 3, [85] * 3, (9, 8, 7), [255] * 3]),
        (png([0, 9], 4, 0, [9]), [[0] * 3, (9, 8, 7)]),
        (png([4000, 5000, 6000, 0, 0, 0], 16, 2, [4000, 5000, 6000]), [(9, 8, 7), [0] * 3]),
    ],
)  # fmt: skip
def test_a_transparent_color_of_any_depth_is_transparent(data, expected):
    image = compose(open_image(data), (9, 8, 7))
    assert np.array_equal(np.asarray(image)[0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([0, 0.25, 1]), [0, 64, 255]),
        (np.float32([0, 100.4, 254]), [0, 100, 254]),
        (np.int32([0, 100, 255]), [0, 100, 255]),
        (np.int32([0, 257 * 100, 65535]), [0, 100, 255]),
    ],
)
def test_32_bit_values_have_the_smallest_white_level_that_covers_them(values, expected):
    image, _ = prepare(encode(Image.fromarray(values[None]), "TIFF"), (1, 3))
    assert image[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "values", [np.float32([0, 300]), np.float32([0, np.nan]), np.float32([-1, 1]),
               np.int32([-1, 5]), np.int32([0, 2**20])]
)  # fmt: skip
def test_an_unknown_white_level_is_refused(values):
    with pytest.raises(UserError, match=r"white level of .* convert it to 8 or 16 bits"):
        check(encode(Image.fromarray(values[None]), "TIFF"))


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


def test_check_gives_the_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert check(encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif)) == (20, 30)
    assert check(encode(Image.new("RGB", (30, 20)), "JPEG")) == (30, 20)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"II"])
def test_damaged_exif_is_a_user_error(kind, exif):
    data = encode(Image.new("RGB", (30, 20)), kind, exif=exif)
    for function in (check, lambda data: prepare(data, (8, 8))):
        with pytest.raises(UserError, match="damaged image"):
            function(data)


@pytest.mark.parametrize(
    "size", [(2**13, 2**13 + 1), (2**14, 2**14), (2**17 + 1, 1), (2**20, 2**20)]
)
def test_too_large_is_said_before_decoding(size, recwarn):
    data = bytearray(encode(Image.new("L", (1, 1))))
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UserError, match="too large"):
        open_image(bytes(data))
    assert not recwarn


def test_cover_keeps_the_aspect_ratio():
    assert cover((200, 400), (64, 64)) == (64, 128)
    assert cover((400, 200), (64, 64)) == (128, 64)
    assert cover((20, 30), (64, 64)) == (64, 96)
    assert cover((3, 1000), (48, 80)) == (48, 16000)
    for width in range(60, 130):  # rounding never leaves it short
        h, w = cover((97, width), (48, 80))
        assert h >= 48 and w >= 80 and (h == 48 or w == 80)


THIN = """
import io, resource
import numpy as np
from PIL import Image
from emu_jax.data.images import prepare
file = io.BytesIO()
row = np.repeat(np.arange(20_000) // 79, 3).astype(np.uint8).reshape(1, -1, 3)
Image.fromarray(row).save(file, "PNG")
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
image, sizes = prepare(file.getvalue(), (256, 256))
assert sizes.tolist() == [1, 20_000, 0, (20_000 - 1) * 128, 256, 256], sizes
assert image.shape == (256, 256, 3) and np.all(image == row[0, 10_000]), image
"""


def test_a_thin_image_takes_little_memory():
    run = subprocess.run([sys.executable, "-c", THIN], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-500:]


@pytest.mark.parametrize("size", [(30, 400), (400, 30), (31, 57)])
def test_cropping_before_resizing_gives_the_same_image(size, monkeypatch):
    # The order of Pillow's two passes differs. Each rounds to 8 bits, and would clip overshoots.
    data = encode(Image.fromarray(96 + picture(*size) // 4))
    one, sizes = prepare(data, (48, 80), random_crop=True, seed=7)
    monkeypatch.setattr(images, "_MAX_RESIZED", 0)
    other, same_sizes = prepare(data, (48, 80), random_crop=True, seed=7)
    assert np.array_equal(sizes, same_sizes)
    assert np.abs(one.astype(int) - other).max() <= 2


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


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(orientation):
    """As in Pillow's draft mode; the sizes are those of the file, smaller images stay."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    ramp = np.add.outer(np.arange(300), 3 * np.arange(500)) % 256
    Image.fromarray(np.stack([ramp] * 3, -1).astype(np.uint8)).save(buffer, "JPEG", exif=exif)
    data, bucket = buffer.getvalue(), (96, 64)
    pixels, sizes = prepare(data, bucket, scaled=True)
    whole, same_sizes = prepare(data, bucket)
    assert np.array_equal(sizes, same_sizes) and not np.array_equal(pixels, whole)
    drafted = Image.open(io.BytesIO(data))
    drafted.draft(None, (100, 100))  # 300 / 96 is 3: a half
    assert drafted.size == (250, 150)
    turned = drafted.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else drafted
    expected = io.BytesIO()
    turned.save(expected, "PNG")
    assert np.array_equal(pixels, prepare(expected.getvalue(), bucket)[0])
    assert np.array_equal(prepare(data, (200, 200), scaled=True)[0], prepare(data, (200, 200))[0])
