"""``emu-jax import PIPELINE --out DIR``: public weights as a model folder.

PIPELINE is a folder or a hub name: a whole pipeline in diffusers' layout (Stable Diffusion 1.5,
2.1, XL, 3, aMUSEd, PixArt-Sigma, DeepFloyd IF's stages), one component (AutoencoderKL, VQModel,
UNet2DConditionModel, UVit2DModel, PixArtTransformer2DModel, SD3Transformer2DModel,
ControlNetModel), or a single file in the original layout (Stable Diffusion 1.5, XL base). A folder
with ImageReward.pt and BERT's tokenizer becomes a reward. Weights keep their dtype.
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, folder, path


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax import", description=__doc__)
    parser.add_argument(
        "pipeline", type=path, help="a folder, a file, or a hub's OWNER/NAME[/SUBFOLDER]"
    )
    parser.add_argument("--out", type=folder, required=True, help="folder for the model")
    parser.add_argument(
        "--variant", default="", help="variant of the weights: fp16, non_ema, ema; default: none"
    )
    parser.add_argument(
        "--tokenizer", default="", help="for a single file: folder or hub name of CLIP's tokenizer"
    )
    parser.add_argument(
        "--compute_dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype of sampling",
    )
    parser.add_argument(
        "--allow_pickle",
        action="store_true",
        help="read a pickle (only the tensors in it) where there is no safetensors file",
    )
    parser.add_argument(
        "--drop_variance",
        action="store_true",
        help="for DeepFloyd IF: drop the half of the output that predicts a variance",
    )
    arguments = parser.parse_args(argv)

    from emu_jax.assembly.importing import import_weights

    print(import_weights(**vars(arguments)))
    return 0
