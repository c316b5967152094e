"""The command line: ``emu-jax <command> ...`` calls ``emu_jax.cli.<command>.main``.

A command is imported only when it is called, and imports what takes seconds only after its
arguments are parsed: help and typing mistakes are answered at once. A user error ends with one
sentence and status 2, an interruption with status 130, the loss of another process of the run with
75 ("try again" in sysexits.h). Anything else is a defect and keeps its traceback.
"""

import difflib
import errno
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence

from emu_jax.errors import LostProcess, UserError
from emu_jax.parallel.compiler import set_flags

COMMANDS = {
    "train": "train a model: pre-training or quality-tuning, as the config says",
    "sample": "draw images from prompts",
    "restyle": "draw photographs anew in a described style",
    "backdrop": "keep the subject of a photograph and draw the rest anew",
    "sticker": "draw stickers: cut out, with a white rim, several to choose from",
    "app": "a page on this machine to draw with, several models and photographs",
    "upsample": "enlarge images with a super-resolution checkpoint",
    "import": "make a model folder from public weights (Stable Diffusion, PixArt, aMUSEd, IF)",
    "export": "write a run's weights as a model folder, in our layout or diffusers'",
    "evaluate": "measure one model: faithfulness, finish, distances, copies",
    "compare": "measure several models and show them side by side in an HTML report",
    "rewards": "measure rewards by pairs of which people prefer one",
    "claims": "decide claims, written down before, by the figures of comparisons",
    "people": "let people compare the images of models in a browser, and report their preference",
    "reconstruct": "measure autoencoders by their reconstructions of held-out images",
    "plan": "compile a training step for TPUs that need not be present: memory, time, traffic",
    "bench": "time a training step and a sampler on the devices of this machine",
    "data": "build data sets, list and show them; vectors and captions; pairs of texts",
}

# Where the module is not called as its command is: a keyword names no module.
MODULES = {"import": "import_weights"}

LOST = 75
_LONGEST = 1000  # characters of a message
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_PLACES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default ``sys.argv[1:]``) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("--version", "version"):
        print(f"emu-jax {importlib.metadata.version('emu_jax')}")
        return 0
    set_flags()
    try:
        return command(arguments[0])(arguments[1:]) or 0
    except BaseException as error:
        status = report(error)
        if status is None:
            raise
        return status


def report(error: BaseException) -> int | None:
    """Prints why a command ended, in one sentence. Returns the exit status; None: a defect."""
    match error:
        case UserError():
            status, sentence = 2, str(error)
        case OSError() if error.errno in _FULL_DISK:
            where = error.filename or error
            status, sentence = 2, f"the disk is full: {where}; free some space and go on"
        case OSError() if error.errno in _OF_PLACES and error.filename:
            reason = f"{error.strerror}; check its permissions, or name another place"
            status, sentence = 2, f"{os.fsdecode(error.filename)} cannot be used: {reason}."
        case LostProcess():
            status, sentence = LOST, str(error)
        case KeyboardInterrupt():
            status, sentence = 130, "interrupted"
        case _:
            return None
    # Names in files of others may hold line ends and a terminal's control characters.
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    if len(plain) > _LONGEST:
        plain = f"{plain[: _LONGEST // 2]} ... {plain[-_LONGEST // 2 :]}"
    print(f"emu-jax: {plain}", file=sys.stderr)
    return status


def command(name: str) -> Callable[[Sequence[str]], int | None]:
    """The ``main`` of a command."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}: {hint}")
    return importlib.import_module(f"emu_jax.cli.{MODULES.get(name, name)}").main


def _usage() -> str:
    lines = [f"  {name:<13}{text}" for name, text in COMMANDS.items()]
    head = "usage: emu-jax <command> ...   (emu-jax <command> --help says more)"
    return "\n".join([head, "", "commands:", *lines])


if __name__ == "__main__":
    sys.exit(main())
