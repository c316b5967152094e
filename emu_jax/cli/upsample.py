"""``emu-jax upsample IMAGE ...``: enlarges images with a super-resolution checkpoint.

``--prompt`` describes the images, which helps. The command writes ``NAME_x2.png`` and a grid of
before and after for each image.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path
from emu_jax.cli.arguments import (
    add_out,
    add_sampling_arguments,
    require_images,
    sampling_changes,
)


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax upsample", description=__doc__)
    parser.add_argument("images", nargs="+", type=path, help="image files")
    parser.add_argument("--checkpoint", type=path, required=True, help="a run or an exported model")
    parser.add_argument("--prompt", default="", help="description of the images")
    parser.add_argument("--negative", default="", help="negative prompt")
    add_out(parser, "runs/upsampled", "folder for the images")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)
    require_images(*arguments.images)

    from etils import epath

    from emu_jax.assembly.drawing import upsample_images

    upsample_images(
        arguments.checkpoint,
        [epath.Path(image) for image in arguments.images],
        arguments.out,
        prompt=arguments.prompt,
        seed=arguments.seed,
        negative=arguments.negative,
        **sampling_changes(arguments),
    )
    print(f"{len(arguments.images)} images in {arguments.out}")
    return 0
