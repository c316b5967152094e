"""Networks in plain Flax NNX, and their parameters as flat dicts. No I/O, no config, no mesh."""
