"""``emu-jax restyle PHOTO ... PROMPT``: draws photographs and drawings anew in a described style.

The prompt describes the result, best with what is in the photograph: "a dog as a watercolor".
``--strength`` says how much of the photograph may change; with ``--control`` its edges stay even
where all else does not. For each PHOTO the command writes one
image per seed, and a sheet with the photograph and its images side by side.
"""

from collections.abc import Sequence
from typing import Any

from emu_jax.assembly.arguments import Parser, path, positive
from emu_jax.cli.arguments import (
    add_control,
    add_generator_arguments,
    add_out,
    add_sampling_arguments,
    add_size,
    add_strength,
    generator_changes,
    largest,
    require_images,
)


def main(argv: Sequence[str], **host: Any) -> int:
    """``host``: as ``host=``, a :class:`~emu_jax.assembly.hosting.Host`."""
    parser = Parser("emu-jax restyle", description=__doc__)
    parser.add_argument("photo", nargs="+", type=path, help="image files")
    parser.add_argument("prompt", help="what the result looks like")
    add_strength(parser, 0.6)
    parser.add_argument("--per_prompt", type=positive, default=1, help="images of each photograph")
    add_size(parser, "as in training")
    add_out(parser, "runs/restyled", "folder for the images")
    add_sampling_arguments(parser)
    add_generator_arguments(parser)
    add_control(parser, "the checkpoint", "each photograph")
    arguments = parser.parse_args(argv)
    require_images(*arguments.photo)

    from emu_jax.assembly.editing import edit_images
    from emu_jax.assembly.given import Given

    names = edit_images(
        arguments.checkpoint,
        arguments.photo,
        arguments.prompt,
        arguments.out,
        strength=arguments.strength,
        seed=arguments.seed,
        per_prompt=arguments.per_prompt,
        negative=arguments.negative,
        size=largest(arguments),
        given=Given(arguments.control_image),
        control=arguments.control,
        **generator_changes(arguments),
        **host,
    )
    print(f"{len(names):,} images in {arguments.out}")
    return 0
