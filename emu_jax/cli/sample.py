"""``emu-jax sample``: draws images from prompts, one PNG file per image and a grid of the first 64.

Images whose files exist are not drawn again: the same command continues an interrupted one. The
metadata of a file say how its image was made: prompt, seed, model, sampler, steps, guidance scale.
``metadata.jsonl`` has a line for every image: file, prompt, seed, and the columns of ``--prompts``.

Several processes, or commands with ``--shard=1/n`` to ``--shard=n/n``, divide the images.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive, share_of_one
from emu_jax.cli.arguments import (
    adapter_changes,
    add_adapters,
    add_data_dir,
    add_out,
    add_prompt_arguments,
    add_sampling_arguments,
    given_images,
    named_prompts,
    sampling_changes,
    share,
)
from emu_jax.errors import UserError

SHIPPED = "builtin:latent_diffusion_64"
_PATIENCE = 7 * 24 * 3600  # seconds: processes end when their images are drawn, not together


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax sample", description=__doc__)
    parser.add_argument("prompts", nargs="*")
    add_prompt_arguments(parser, "default all of --prompts")
    add_data_dir(parser)
    add_sampling_arguments(parser)
    parser.add_argument(
        "--checkpoint", type=path, default=SHIPPED, help=f"model; default {SHIPPED}"
    )
    add_adapters(parser, "the checkpoint")
    parser.add_argument(
        "--eta", type=share_of_one, help="share of the text adapter, 0 to 1; default: its own"
    )
    parser.add_argument(
        "--per_prompt", type=positive, default=1, help="number of images per prompt"
    )
    parser.add_argument("--width", type=positive, help="in pixels; default: as in training")
    parser.add_argument("--height", type=positive, help="in pixels; default: as in training")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument(
        "--shard", type=share, help="i/n: draw the i-th of n shares; default: one per process"
    )
    add_out(parser, "runs/samples", "folder for the images")
    arguments = parser.parse_args(argv)
    if not (arguments.prompts or arguments.prompt_set):
        raise UserError('There are no prompts: give some, e.g. emu-jax sample "a red fox".')
    named = named_prompts(arguments)

    from emu_jax.assembly.drawing import draw_prompts
    from emu_jax.cli.main import report
    from emu_jax.evaluation.prompt_sets import PromptSet
    from emu_jax.parallel.distributed import ending_together, initialize

    prompts = PromptSet(tuple(arguments.prompts)) + (named or PromptSet(()))
    if not arguments.shard:
        initialize(patience=_PATIENCE)
    with ending_together(report):
        names = draw_prompts(
            arguments.checkpoint,
            prompts,
            arguments.out,
            seed=arguments.seed,
            per_prompt=arguments.per_prompt,
            negative=arguments.negative,
            width=arguments.width,
            height=arguments.height,
            shard=arguments.shard,
            given=given_images(arguments),
            text_adapter=arguments.text_adapter,
            eta=arguments.eta,
            **adapter_changes(arguments),
            **sampling_changes(arguments),
        )
    print(f"{len(names):,} images in {arguments.out}, the first of them in grid.png", flush=True)
    return 0
