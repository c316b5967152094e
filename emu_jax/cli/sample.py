"""``emu-jax sample``: draws images from prompts, one PNG file per image and a grid of all.

Images whose files exist are not drawn again: the same command continues an interrupted one. The
metadata of a file say how its image was made: prompt, seed, model, sampler, steps, guidance scale.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive, real
from emu_jax.cli.arguments import add_out, add_sampling_arguments, sampling_changes
from emu_jax.errors import UserError

SHIPPED = "builtin:latent_diffusion_64"


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax sample", description=__doc__)
    parser.add_argument("prompts", nargs="*")
    parser.add_argument(
        "--prompts",
        dest="file",
        type=path,
        help="file with one prompt per line, or a table (.tsv, .csv)",
    )
    parser.add_argument(
        "--prompt_column", default="", help="column of the table's prompts; default prompt"
    )
    add_sampling_arguments(parser)
    parser.add_argument(
        "--checkpoint", type=path, default=SHIPPED, help=f"model; default {SHIPPED}"
    )
    parser.add_argument(
        "--adapter", type=path, default="", help="LoRA file to lay over the checkpoint"
    )
    parser.add_argument("--adapter_scale", type=real, default=1.0, help="its strength")
    parser.add_argument(
        "--per_prompt", type=positive, default=1, help="number of images per prompt"
    )
    parser.add_argument("--width", type=positive, help="in pixels; default: as in training")
    parser.add_argument("--height", type=positive, help="in pixels; default: as in training")
    parser.add_argument("--negative", default="", help="negative prompt")
    add_out(parser, "runs/samples", "folder for the images")
    arguments = parser.parse_args(argv)
    if not (arguments.prompts or arguments.file):
        raise UserError('There are no prompts: give some, e.g. emu-jax sample "a red fox".')

    from emu_jax.assembly.drawing import draw_prompts
    from emu_jax.evaluation.prompt_sets import open_prompts

    prompts = list(arguments.prompts)
    if arguments.file:
        prompts += open_prompts(arguments.file, arguments.prompt_column).prompts
    paths = draw_prompts(
        arguments.checkpoint,
        prompts,
        arguments.out,
        seed=arguments.seed,
        per_prompt=arguments.per_prompt,
        negative=arguments.negative,
        width=arguments.width,
        height=arguments.height,
        adapter=arguments.adapter,
        adapter_scale=arguments.adapter_scale,
        **sampling_changes(arguments),
    )
    print(f"{len(paths)} images in {arguments.out}, all of them in {arguments.out}/grid.png")
    return 0
