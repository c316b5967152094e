"""``emu-jax restyle PHOTO ... PROMPT``: draws photographs and drawings anew in a described style.

The prompt describes the result, best with what is in the photograph: "a dog as a watercolor".
``--strength`` says how much of the photograph may change; with ``--control`` the result follows
its edges. For each PHOTO the command writes one
image per seed, and a sheet with the photograph and its images side by side.
"""

from collections.abc import Sequence
from typing import Any

from emu_jax.assembly.arguments import Parser
from emu_jax.cli.arguments import add_control, add_editing, editing_changes, require_images


def main(argv: Sequence[str], **host: Any) -> int:
    """``host``: as ``host=``, a :class:`~emu_jax.assembly.hosting.Host`."""
    parser = Parser("emu-jax restyle", description=__doc__)
    add_editing(parser, 0.6, "runs/restyled")
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
        given=Given(arguments.control_image),
        control=arguments.control,
        **editing_changes(arguments),
        **host,
    )
    print(f"{len(names):,} images in {arguments.out}")
    return 0
