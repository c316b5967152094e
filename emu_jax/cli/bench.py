"""``emu-jax bench``: how fast a config's training step and its sampler run here.

    emu-jax bench --config=FILE[:OPTIONS] --out=DIR [--measure=train] [--measure=sample]
        [--pictures=16] [--repeats=10] [--warmup=2] [--config.KEY=VALUE]

Runs the very step that ``emu-jax train`` would run, and draws pictures as ``emu-jax sample`` would.
Batches and the weights of frozen networks are made up, so a config is all that is needed: no data
set, no checkpoint. Prints a line each and writes ``bench.json``.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from emu_jax.assembly.config import parse
from emu_jax.assembly.cost import model_flops, step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.assembly.training import prepare
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.planning.bench import Speed, bench_sampler, bench_step
from emu_jax.planning.inputs import abstract_frozen, synthetic
from emu_jax.training.state import abstract_state, averaged, fresh_params

PROGRAM = "emu-jax bench"
MEASURES = ("train", "sample")


def main(argv: Sequence[str]) -> int:
    values = parse(argv, PROGRAM, _define)
    if not values.out:
        raise UserError(f"{PROGRAM} needs --out=DIR, where bench.json goes.")
    config = values.config
    prepare(config)
    speeds = bench(config, values)
    if jax.process_index() == 0:
        device = jax.devices()[0]
        for name, speed in speeds.items():
            print(speed.line(name, device.device_kind))
        out = epath.Path(values.out) / "bench.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "arguments": list(argv),
            "jax": jax.__version__,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "mesh": dict(make_mesh(**config.mesh).shape),
            "compute_dtype": config.compute_dtype,
            **{name: speed.record() for name, speed in speeds.items()},
        }
        out.write_text(json.dumps(found, indent=1))
        print(f"report: {out}")
    return 0


def bench(config: ConfigDict, values: Any) -> dict[str, Speed]:
    """What is asked for -> its speed."""
    mesh = make_mesh(**config.mesh)
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    if "sample" in values.measure and task.generator is None:
        raise UserError(f"The task {config.task} draws no images: use --measure=train.")
    unused = unused_networks(config, task)
    frozen = synthetic(abstract_frozen(task, mesh, unused), jax.random.key(0), 0.02)
    counts = dict(warmup=values.warmup, repeats=values.repeats)
    speeds, params = {}, None
    if "train" in values.measure:
        state, batch = abstract_state(task, mesh), step_batch(config, task, frozen, mesh)
        flops = model_flops(config, state, frozen, batch)
        train = config.train
        speeds["train"], state = bench_step(
            *(task, mesh, state, frozen, batch, flops),
            seed=train.seed,
            accumulate=train.accumulate,
            **counts,
        )
        params = averaged(state)
        del state  # the optimiser's part of it
    if "sample" in values.measure:
        if params is None:
            params, _ = fresh_params(task, config.train.seed, mesh)
        side = config.data.image_size
        speeds["sample"] = bench_sampler(
            task, mesh, params, frozen, side, values.pictures, **counts
        )
    return speeds


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_enum(
        "measure", list(MEASURES), MEASURES, "What to time; may be repeated.", flag_values=values
    )
    flags.DEFINE_integer("pictures", 16, "Drawn at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repeats", 10, "Timed calls.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("warmup", 2, "Calls before them.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("out", None, "Folder for bench.json.", flag_values=values)
