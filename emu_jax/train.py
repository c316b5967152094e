"""``python -m emu_jax.train ...`` runs ``emu-jax train ...``, for launchers that need a module."""

import sys

from emu_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
