"""``emu-jax sticker PROMPT``: draws several stickers to choose from.

Each is cut out, has a white rim and a transparent background, and is written as PNG and WebP with
512 x 512 pixels. ``PROMPT.webp`` and ``PROMPT.gif`` show all of them, animated.
"""

from collections.abc import Sequence
from typing import Any

from emu_jax.assembly.arguments import Parser, positive, scale
from emu_jax.cli.arguments import (
    add_generator_arguments,
    add_out,
    add_sampling_arguments,
    generator_changes,
)


def main(argv: Sequence[str], **host: Any) -> int:
    """``host``: as ``host=``, a :class:`~emu_jax.assembly.hosting.Host`."""
    parser = Parser("emu-jax sticker", description=__doc__)
    parser.add_argument("prompt", help="one thing")
    parser.add_argument("--count", type=positive, default=4, help="stickers to choose from")
    parser.add_argument("--rim", type=scale, default=16.0, help="width of the white rim in pixels")
    add_out(parser, "runs/stickers", "folder for the images")
    add_sampling_arguments(parser)
    add_generator_arguments(parser)
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.stickers import draw_stickers

    names = draw_stickers(
        arguments.checkpoint,
        arguments.prompt,
        arguments.out,
        seed=arguments.seed,
        count=arguments.count,
        negative=arguments.negative,
        rim=arguments.rim,
        **generator_changes(arguments),
        **host,
    )
    print(f"{len(names)} stickers in {arguments.out}: {', '.join(names)}")
    return 0
