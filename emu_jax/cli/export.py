"""``emu-jax export CHECKPOINT --out DIR``: writes a run's weights as a model folder to pass on.

The folder contains ``config.json`` and ``model.safetensors``: the averaged weights where the run
keeps an average, and what the task measured (a latent space's shift and scale). The codec and the
text encoders are copied into it, so that it can be moved; ``--without_text_encoders`` leaves the
latter out. With ``--format=diffusers`` it is a pipeline, or for an autoencoder the component, in
diffusers' layout; with ``--format=single_file`` one file in the original layout of Stable Diffusion
1.5 or XL base. An adapter is merged into its base, or with ``--adapter`` written by itself: a LoRA
in the layout of diffusers' ``load_lora_weights`` or, with ``--format=kohya``, in kohya's, text
adapters as one safetensors file, and a ControlNet as a model folder for ``--control`` or, with
``--format=diffusers``, as a ControlNetModel.
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
        "--format",
        default="",
        choices=("emu_jax", "diffusers", "single_file", "kohya"),
        help="layout; by default emu_jax, and diffusers for --adapter, which also knows kohya",
    )
    parser.add_argument(
        "--dtype",
        default="",
        choices=("bfloat16", "float16", "float32", "keep"),
        help="dtype of the weights; by default bfloat16, in public layouts unchanged",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write a run's LoRA, text adapter or ControlNet alone",
    )
    parser.add_argument(
        "--without_text_encoders",
        action="store_true",
        help="do not copy text encoders into the folder: it then needs them where they are",
    )
    arguments = parser.parse_args(argv)
    if arguments.adapter and arguments.format not in ("", "diffusers", "kohya"):
        raise UserError("--adapter is written with --format=diffusers or --format=kohya.")
    if arguments.format == "kohya" and not arguments.adapter:
        raise UserError("--format=kohya is a layout of adapters: add --adapter.")
    if arguments.format == "single_file" and not arguments.out.endswith(".safetensors"):
        raise UserError(f"--format=single_file needs a file, --out={arguments.out}.safetensors.")

    from emu_jax.assembly.exporting import export_adapter, export_model

    checkpoint, out, dtype = arguments.checkpoint, arguments.out, arguments.dtype
    if arguments.adapter:
        print(export_adapter(checkpoint, out, dtype=dtype, format=arguments.format))
    else:
        include = not arguments.without_text_encoders
        format = arguments.format or "emu_jax"
        print(export_model(checkpoint, out, format=format, dtype=dtype, text_encoders=include))
    return 0
