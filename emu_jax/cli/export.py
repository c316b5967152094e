"""``emu-jax export CHECKPOINT --out DIR``: a run's weights as a model folder to pass on.

The folder holds ``config.json`` and ``model.safetensors``: the averaged weights where the run keeps
an average, and what the task measured (a latent space's shift and scale).
"""

import argparse
from collections.abc import Sequence

from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.cli import parts
from emu_jax.nn.stack import unstacked


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax export", description=__doc__)
    parser.add_argument("checkpoint", help="a run's folder, or DIR@step")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args(argv)
    model = load_model(parts.locate(arguments.checkpoint))
    # A critic is of no use without its training; and layers go by number, however they were run.
    kept = unstacked(
        {path: x for path, x in model.params.items() if not path.startswith("discriminator/")}
    )
    # Where the data lay on the machine that trained is nobody else's business.
    for place in ("data_dir", "cache_dir"):
        model.config["data"].pop(place, None)
    recorded = ("step", "seed", "frozen", "chosen")
    meta = {name: model.meta[name] for name in recorded if name in model.meta}
    save_model(arguments.out, kept, model.config, meta, arguments.dtype)
    size = sum(value.size for value in kept.values())
    print(f"{arguments.out}: step {meta['step']}, {size:,} parameters as {arguments.dtype}")
    return 0
