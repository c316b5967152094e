"""``emu-jax bench``: times a config's training step and sampler on the devices of this machine.

    emu-jax bench --config=FILE[:OPTIONS] --out=DIR [--measure=train] [--measure=sample]
        [--pictures=16] [--repeats=10] [--warmup=2] [--profile] [--config.KEY=VALUE]

The step is that of ``emu-jax train``, the sampler that of ``emu-jax sample``. Batches and the
weights of frozen networks are made up, so a config is enough: no data set, no checkpoint. Prints
one line for each measurement and writes ``bench.json``.
"""

import json
from collections.abc import Sequence

from emu_jax.assembly.arguments import counted, positive
from emu_jax.assembly.config import config_parser, parse
from emu_jax.cli.arguments import add_out
from emu_jax.errors import UserError

PROGRAM = "emu-jax bench"
MEASURES = ("train", "sample")


def main(argv: Sequence[str]) -> int:
    parser = config_parser(PROGRAM, __doc__)
    parser.add_argument(
        "--measure", action="append", choices=MEASURES, help="what to time; default: both"
    )
    parser.add_argument("--pictures", type=positive, default=16, help="images drawn at once")
    parser.add_argument("--repeats", type=positive, default=10, help="timed calls")
    parser.add_argument("--warmup", type=counted, default=2, help="untimed calls before them")
    parser.add_argument(
        "--profile", action="store_true", help="time the kernels of an NVIDIA GPU by kind"
    )
    add_out(parser, None, "folder for bench.json")
    values = parse(argv, parser)
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
        values.measure or MEASURES,
        images=values.pictures,
        warmup=values.warmup,
        repeats=values.repeats,
        profile=values.profile,
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
