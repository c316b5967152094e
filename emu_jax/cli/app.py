"""``emu-jax app``: a page on this machine to draw with, restyle photographs, replace backdrops,
make stickers, and see two models side by side.

The images appear during sampling. ``--out`` keeps all of them, with the command that repeats each.
The page offers the models and adapters that are named here and no others; without a name the
shipped models and ControlNet. It needs the extra ``app``: pip install "emu_jax[app]".
"""

from collections.abc import Sequence

from emu_jax.assembly.arguments import Parser, path, positive
from emu_jax.cli.arguments import add_out, port, require_packages
from emu_jax.errors import UserError

SHIPPED = (
    "builtin:latent_diffusion_64",
    "builtin:masked_64",
    "builtin:pixel_diffusion_32+builtin:pixel_super_64",
)
SHIPPED_CONTROLS = ("builtin:control_64",)  # for the first of them
_PACKAGES = ("gradio", "fastapi", "starlette", "uvicorn")
_DRAWING = ("sample", "restyle", "backdrop", "sticker")


def main(argv: Sequence[str]) -> int:
    parser = Parser("emu-jax app", description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=path, help="models; default the shipped")
    for option, what in (
        ("--adapter", "LoRA file to offer"),
        ("--text_adapter", "file of a text adapter to offer"),
        ("--control", "ControlNet to offer: a run, an exported or imported one"),
        ("--segmenter", "segmenter to offer for backdrops, besides the plain background"),
    ):
        how = f"{what}; may be given several times"
        parser.add_argument(option, type=path, action="append", default=[], help=how)
    parser.add_argument("--kept", type=positive, default=3, help="models kept open (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port, default=7860, help="(%(default)s)")
    add_out(parser, "runs/app", "folder for the images and their history")
    arguments = parser.parse_args(argv)
    if "://" in arguments.out:
        raise UserError(f"--out={arguments.out} is in a bucket; name a folder of this machine.")
    require_packages("app", _PACKAGES)

    from emu_jax.app.page import Choices
    from emu_jax.app.serving import serve
    from emu_jax.cli.main import command

    choices = Choices(
        arguments.checkpoints or SHIPPED,
        arguments.adapter,
        arguments.text_adapter,
        arguments.control or (() if arguments.checkpoints else SHIPPED_CONTROLS),
        arguments.segmenter,
    )
    mains = {name: command(name) for name in _DRAWING}
    serve(mains, arguments.out, choices, arguments.host, arguments.port, arguments.kept)
    return 0
