"""``emu-jax export CHECKPOINT --out DIR``: writes a run's weights as a model folder to pass on.

The folder holds ``config.json`` and ``model.safetensors``: the averaged weights where the run keeps
an average, and what the task measured (a latent space's shift and scale). With
``--format=diffusers`` it is a pipeline, or for an autoencoder the component, in diffusers' layout;
with ``--format=single_file`` one file in the original layout of Stable Diffusion 1.5 or XL base.
An adapter is merged into its base, or with ``--adapter`` written by itself in the layout of
diffusers' ``load_lora_weights``.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, model, path
from emu_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax export", description=__doc__)
    parser.add_argument("checkpoint", type=path, help="a run's folder, or DIR@step")
    parser.add_argument(
        "--out", type=model, required=True, help="folder for the model, or a single file"
    )
    parser.add_argument(
        "--format", default="emu_jax", choices=("emu_jax", "diffusers", "single_file")
    )
    parser.add_argument(
        "--dtype",
        default="",
        choices=("bfloat16", "float16", "float32", "keep"),
        help="dtype of the weights; by default bfloat16, in public layouts unchanged",
    )
    parser.add_argument("--adapter", action="store_true", help="write a LoRA run's adapter alone")
    arguments = parser.parse_args(argv)
    if arguments.adapter and arguments.format != "emu_jax":
        raise UserError("--adapter has one layout, which diffusers reads: leave --format out.")
    if arguments.format == "single_file" and not arguments.out.endswith(".safetensors"):
        raise UserError(f"--format=single_file needs a file, --out={arguments.out}.safetensors.")

    from emu_jax.assembly.exporting import export_adapter, export_model

    checkpoint, out, dtype = arguments.checkpoint, arguments.out, arguments.dtype
    if arguments.adapter:
        print(export_adapter(checkpoint, out, dtype=dtype))
    else:
        print(export_model(checkpoint, out, format=arguments.format, dtype=dtype))
    return 0
