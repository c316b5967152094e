"""``emu-jax export CHECKPOINT --out DIR``: a run's weights as a model folder to pass on.

The folder holds ``config.json`` and ``model.safetensors``: the averaged weights where the run keeps
an average, and what the task measured (a latent space's shift and scale). An adapter is merged into
its base, or with ``--adapter`` written by itself, as diffusers' ``load_lora_weights`` reads it.
"""

import argparse
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from emu_jax.checkpoint.adapters import FILE, write_adapter
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.cli.models import locate, make_lora, open_model
from emu_jax.errors import UserError
from emu_jax.nn.stack import unstacked


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="emu-jax export", description=__doc__)
    parser.add_argument("checkpoint", help="a run's folder, or DIR@step")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--adapter", action="store_true", help="a lora run's adapter alone")
    arguments = parser.parse_args(argv)
    if arguments.adapter:
        return _adapter(arguments)
    model = open_model(arguments.checkpoint)
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


def _adapter(arguments: argparse.Namespace) -> int:
    model = load_model(locate(arguments.checkpoint))
    config = ConfigDict(model.config)
    lora = make_lora(config)
    if lora is None:
        raise UserError(f"{arguments.checkpoint} has no adapter: it was trained with lora.rank 0.")
    tokens = config.process.get("kind") == "masking"
    write_adapter(
        arguments.out,
        model.params,
        lora.alpha / lora.rank,
        prefix="transformer" if tokens else "unet",
        dtype=ml_dtypes.bfloat16 if arguments.dtype == "bfloat16" else np.float32,
    )
    size = sum(value.size for value in model.params.values())
    print(
        f"{arguments.out}/{FILE}: step {model.meta['step']}, {size:,} parameters as "
        f"{arguments.dtype}, of rank {lora.rank} for {config.init_from}"
    )
    return 0
