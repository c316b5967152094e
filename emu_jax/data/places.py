"""Where data sets are kept."""

import os

DEFAULT_DATA_DIR = os.environ.get("EMU_JAX_DATA") or "~/emu_jax_data"
