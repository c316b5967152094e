"""``emu-jax sample``: draws images from prompts, one PNG file per image and a grid of the first 64.

Images whose files exist are not drawn again: the same command continues an interrupted one. The
metadata of a file say how its image was made: prompt, seed, model, sampler, steps, guidance scale.
``metadata.jsonl`` has a line for every image: file, prompt, seed, and the columns of ``--prompts``.

Several processes, or commands with ``--shard=1/n`` to ``--shard=n/n``, divide the images.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from emu_jax.assembly.arguments import Parser, path, positive
from emu_jax.cli.arguments import (
    add_control,
    add_data_dir,
    add_feather,
    add_generator_arguments,
    add_given,
    add_out,
    add_prompt_arguments,
    add_sampling_arguments,
    add_size,
    add_strength,
    generator_changes,
    given_images,
    named_prompts,
    require_images,
    share,
)
from emu_jax.errors import UserError

FORMATS = ("png", "webdataset")
_PATIENCE = 7 * 24 * 3600  # seconds: processes end when their images are drawn, not together


def main(argv: Sequence[str], **host: Any) -> int:
    """``host``: as ``host=``, a :class:`~emu_jax.assembly.hosting.Host`."""
    parser = Parser("emu-jax sample", description=__doc__)
    parser.add_argument("prompts", nargs="*")
    add_prompt_arguments(parser, "default all of --prompts")
    add_data_dir(parser)
    add_sampling_arguments(parser)
    add_generator_arguments(parser)
    add_control(parser, "the checkpoint", "--image, else those of the prompts' data set")
    add_given(parser)
    parser.add_argument(
        "--per_prompt", type=positive, default=1, help="number of images per prompt"
    )
    add_size(parser, "as in training")
    parser.add_argument("--image", type=path, default="", help="image to start from")
    parser.add_argument(
        "--keep", type=path, default="", help="image: white where --image stays, black elsewhere"
    )
    add_strength(parser, 0.6)
    add_feather(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="png",
        help="png: a file per image; webdataset: tar files of --shard_size images each",
    )
    parser.add_argument(
        "--shard_size", type=positive, default=1000, help="images in a tar file; default 1000"
    )
    parser.add_argument(
        "--shard", type=share, help="i/n: draw the i-th of n shares; default: one per process"
    )
    add_out(parser, "runs/samples", "folder for the images")
    arguments = parser.parse_args(argv)
    if not (arguments.prompts or arguments.prompt_set):
        raise UserError('There are no prompts: give some, e.g. emu-jax sample "a red fox".')
    if arguments.keep and not arguments.image:
        raise UserError("--keep says what of --image stays: add --image=FILE.")
    require_images(arguments.image, arguments.keep)
    sharded = arguments.format == "webdataset"
    if sharded and (arguments.control or arguments.given):
        raise UserError("--format=webdataset takes no --control and no --given; use --format=png.")
    named = named_prompts(arguments)

    from emu_jax.assembly.drawing import draw_prompts
    from emu_jax.assembly.shards import draw_shards
    from emu_jax.assembly.starting import open_start
    from emu_jax.cli.main import report
    from emu_jax.evaluation.prompt_sets import PromptSet
    from emu_jax.parallel.distributed import ending_together, initialize

    prompts = PromptSet(tuple(arguments.prompts)) + (named or PromptSet(()))
    if not arguments.shard:
        initialize(patience=_PATIENCE)
    start = None
    if arguments.image:
        how = (arguments.strength, arguments.feather)
        start = open_start(arguments.image, arguments.keep, *how)
    if sharded:
        draw = partial(draw_shards, shard_size=arguments.shard_size)
    else:
        draw = partial(draw_prompts, given=given_images(arguments), **host)
    with ending_together(report):
        names = draw(
            arguments.checkpoint,
            prompts,
            arguments.out,
            seed=arguments.seed,
            per_prompt=arguments.per_prompt,
            negative=arguments.negative,
            width=arguments.width,
            height=arguments.height,
            shard=arguments.shard,
            start=start,
            control=arguments.control,
            **generator_changes(arguments),
        )
    what = "files of images" if sharded else "images"
    more = "" if sharded else ", the first of them in grid.png"
    print(f"{len(names):,} {what} in {arguments.out}{more}", flush=True)
    return 0
