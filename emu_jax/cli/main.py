"""The command line: ``emu-jax <command> ...`` hands the rest to ``emu_jax.cli.<command>.main``.

A command is imported only when it is called, so that help and a misspelt name answer at once.
What a user can mend ends in one sentence and status 2, an interruption in status 130, the loss of
another process of the run in 75 ("try again" in sysexits.h); anything else is a defect of ours and
keeps its traceback.
"""

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence

from emu_jax.errors import LostProcess, UserError

COMMANDS = {
    "train": "train a model: pre-training or quality-tuning, as the config says",
    "sample": "draw pictures from prompts",
    "upsample": "enlarge pictures with a super-resolution checkpoint",
    "import": "public weights (Stable Diffusion 1.5, 2.1, XL) as a model folder",
    "export": "write a run's weights as a model folder, ours or diffusers'",
    "evaluate": "measure one model: faithfulness, finish, distances, copies",
    "compare": "measure several models and put them side by side in an HTML report",
    "reconstruct": "measure autoencoders by what comes back of held-out pictures",
    "plan": "compile a training step for TPUs: memory, modelled time, traffic",
    "bench": "time a training step and a sampler on the devices that are here",
    "data": "build data sets and look at them",
}

# Where the module is not called as its command is: a keyword names no module.
MODULES = {"import": "import_weights"}

LOST = 75
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default ``sys.argv[1:]``) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    try:
        return command(arguments[0])(arguments[1:]) or 0
    except BaseException as error:
        status = report(error)
        if status is None:
            raise
        return status


def report(error: BaseException) -> int | None:
    """Says in one sentence what ended a command; its exit status, None for a defect of ours."""
    match error:
        case UserError():
            status, sentence = 2, str(error)
        case OSError() if error.errno in _FULL_DISK:
            where = error.filename or error
            status, sentence = 2, f"the disk is full: {where}; free some space and go on"
        case LostProcess():
            status, sentence = LOST, str(error)
        case KeyboardInterrupt():
            status, sentence = 130, "interrupted"
        case _:
            return None
    print(f"emu-jax: {sentence}", file=sys.stderr)
    return status


def command(name: str):
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
