"""``python -m emu_jax COMMAND ...``: the command line, for launchers that need a module."""

import sys

from emu_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
