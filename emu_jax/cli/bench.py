"""``emu-jax bench``: times a config's training step and sampler on the devices of this machine.

    emu-jax bench --config=FILE[:OPTIONS] --out=DIR [--measure=train] [--measure=sample]
        [--pictures=16] [--repeats=10] [--warmup=2] [--config.KEY=VALUE]

The step is that of ``emu-jax train``, the sampler that of ``emu-jax sample``. Batches and the
weights of frozen networks are made up, so a config is enough: no data set, no checkpoint. Prints
one line for each measurement and writes ``bench.json``.
"""

import json
from collections.abc import Sequence

from absl import flags

from emu_jax.assembly.config import parse
from emu_jax.errors import UserError

PROGRAM = "emu-jax bench"
MEASURES = ("train", "sample")


def main(argv: Sequence[str]) -> int:
    values = parse(argv, PROGRAM, _define)
    if not values.out:
        raise UserError(f"{PROGRAM} needs --out=DIR, the folder for bench.json.")

    import jax
    from etils import epath

    from emu_jax.assembly.speed import bench
    from emu_jax.assembly.training import prepare
    from emu_jax.parallel.mesh import make_mesh

    config = values.config
    prepare(config)
    speeds = bench(
        config,
        values.measure,
        images=values.pictures,
        warmup=values.warmup,
        repeats=values.repeats,
    )
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


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_enum(
        "measure", list(MEASURES), MEASURES, "What to time; may be repeated.", flag_values=values
    )
    flags.DEFINE_integer("pictures", 16, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repeats", 10, "Timed calls.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("warmup", 2, "Untimed calls before.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("out", None, "Folder for bench.json.", flag_values=values)
