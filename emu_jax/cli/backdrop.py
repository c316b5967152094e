"""``emu-jax backdrop PHOTO ... PROMPT``: keeps the subject of a photograph and draws the rest anew.

The subject is what ``--mask`` shows in white; else what is opaque, where a photograph is
transparent; else what a segmenter cuts out. Without ``--segmenter`` that is the thing on a plain
background, or the thing in ``--box`` by its colors. Segment Anything needs ``--box`` or
``--click``. The result has the photograph's size, and the subject's pixels are those of the
photograph, except along its edge.
"""

from collections.abc import Sequence
from typing import Any

from emu_jax.assembly.arguments import Parser, path, scale
from emu_jax.cli.arguments import (
    add_editing,
    add_feather,
    editing_changes,
    numbers,
    require_images,
)


def main(argv: Sequence[str], **host: Any) -> int:
    """``host``: as ``host=``, a :class:`~emu_jax.assembly.hosting.Host`."""
    parser = Parser("emu-jax backdrop", description=__doc__)
    add_editing(parser, 1.0, "runs/backdrops")
    parser.add_argument(
        "--mask", type=path, default="", help="image: white where the subject is, black elsewhere"
    )
    parser.add_argument(
        "--box", type=numbers(4), help="LEFT,TOP,RIGHT,BOTTOM in pixels: the subject is inside"
    )
    parser.add_argument("--click", type=numbers(2), help="X,Y: a pixel of the subject")
    parser.add_argument(
        "--segmenter",
        type=path,
        default="",
        help="folder of a Segment Anything model, or a parser (builtin:parser_64)",
    )
    parser.add_argument(
        "--margin",
        type=scale,
        default=0.0,
        help="room to draw around the photograph, as a share of its longer side; default 0",
    )
    add_feather(parser)
    arguments = parser.parse_args(argv)
    require_images(*arguments.photo, arguments.mask)

    from emu_jax.assembly.editing import edit_images
    from emu_jax.assembly.subject import Subject

    names = edit_images(
        arguments.checkpoint,
        arguments.photo,
        arguments.prompt,
        arguments.out,
        subject=Subject(arguments.mask, arguments.box, arguments.click, arguments.segmenter),
        feather=arguments.feather,
        margin=arguments.margin,
        **editing_changes(arguments),
        **host,
    )
    print(f"{len(names):,} images in {arguments.out}")
    return 0
