"""Configs: read from a file with a string argument, overridden from the command line.

A config file's ``get_config("size=tiny,stage=pretrain")`` starts from :func:`defaults` and fills in
a family. Every key exists in the file: an override of one that does not is refused with the nearest
spelling.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from emu_jax.data.source import DEFAULT_DATA_DIR
from emu_jax.errors import UserError


def options(argument: str | None, **choices: Sequence[str]) -> SimpleNamespace:
    """``"size=tiny,stage=pretrain"`` as attributes; an option's first choice is its default."""
    chosen = {name: values[0] for name, values in choices.items()}
    for part in filter(None, (argument or "").split(",")):
        name, _, value = part.partition("=")
        if name not in choices:
            raise UserError(f"The config has no option {name!r}; it has {', '.join(choices)}.")
        if value not in choices[name]:
            raise UserError(f"{name} is one of {', '.join(choices[name])}, not {value!r}.")
        chosen[name] = value
    return SimpleNamespace(**chosen)


def optimizer(**changes: object) -> ConfigDict:
    """An ``optimizer`` section: AdamW, constant rate, unless changed."""
    section = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-4,
            schedule="constant",
            warmup=0,
            final=0.0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip=1.0,
        )
    )
    section.lock()  # a key that is not above is misspelt
    section.update(changes)
    return section


def group(
    pattern: str,
    *,
    first_step: int = 0,
    every: int = 1,
    ema_decay: float | None = None,
    **changes: object,
) -> ConfigDict:
    """A ``groups`` entry: which parameters, how they are updated."""
    section = ConfigDict(dict(pattern=pattern, first_step=first_step, every=every))
    section.ema_decay = config_dict.placeholder(float)
    section.ema_decay = ema_decay
    section.optimizer = optimizer(**changes)
    return section


def source(dataset: str, *, select: str = "", weight: float = 1.0) -> ConfigDict:
    """A data set in a stream; ``select`` as in :meth:`emu_jax.data.manifest.Manifest.select`."""
    return ConfigDict(dict(dataset=dataset, select=select, weight=weight))


def defaults() -> ConfigDict:
    """The sections every task shares; they take no other keys."""
    config = ConfigDict(
        dict(
            task="",
            compute_dtype="float32",
            # Another run or exported model to start the parameters from: a path, or builtin:NAME.
            init_from="",
            # Regular expression of parameters to start anew although init_from has them.
            init_skip="",
            # Bit-exact runs on GPU at some cost in speed; CPU and TPU are exact without.
            deterministic=True,
            # How attention is computed: auto (by device), xla, flash (TPUs) or cudnn (GPUs).
            attention="auto",
            mesh=dict(data=-1, fsdp=1, slices=1),
            train=dict(
                steps=1000,
                batch_size=64,
                seed=0,
                accumulate=1,
                log_every=50,
                validate_every=500,
                preview_every=500,
                checkpoint_every=500,
                keep_last=2,
                keep_best=0,
                best_metric="",
                # Ends the run when what a validation measures (kept/loss) has not improved in
                # `patience` validations, and keeps the best of them. Empty metric: never.
                stop=dict(metric="", mode="min", patience=3, min_delta=0.0),
                max_skipped_in_row=5,
                profile_start=10,
                profile_steps=0,
                wandb=False,
            ),
            data=dict(
                data_dir=DEFAULT_DATA_DIR,
                image_size=64,
                buckets=False,
                bucket_step=64,
                background=(255, 255, 255),
                random_crop=False,
                flip=True,
                workers=0,
                threads=2,
                # Encoded latents and texts are computed once and kept here, where asked for.
                cache_dir=f"{DEFAULT_DATA_DIR}/cache",
                cache_latents=False,
                cache_text=False,
                train=dict(),
                validation=dict(),
            ),
        )
    )
    for section in (config.mesh, config.train, config.data):
        section.lock()
    for streams in (config.data.train, config.data.validation):
        streams.unlock()
    return config


def load(argv: Sequence[str], program: str) -> tuple[ConfigDict, str]:
    """(config, workdir) from ``--config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE]``."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "Where the run is kept.", flag_values=values)

    values = parse(argv, program, define)
    if not values.workdir:
        raise UserError(f"{program} needs --workdir=DIR, where the run is kept and resumed from.")
    return values.config, values.workdir


def parse(
    argv: Sequence[str], program: str, define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """``--config=FILE[:ARGUMENT] [--config.KEY=VALUE]`` as ``.config``, and the flags that
    ``define`` adds."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", help_string="Config file.", flag_values=values, sys_argv=[program, *argv]
    )
    define(values)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "")
    if not path:
        raise UserError(
            f"{program} needs --config=FILE[:OPTIONS], e.g. configs/autoencoder.py:size=tiny."
        )
    if not Path(path.split(":", 1)[0]).is_file():
        raise UserError(f"There is no config file {path.split(':', 1)[0]}.")
    try:
        rest = values([program, *argv])
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(_explain(error, argv, values)) from error
    if len(rest) > 1:
        raise UserError(f"{program} does not know what to do with {rest[1]!r}.")
    return values


def _explain(error: Exception, argv: Sequence[str], values: flags.FlagValues) -> str:
    """One sentence for a key that is not in the config, else what the parser said."""
    path = next(a.split("=", 1)[1] for a in argv if a.startswith("--config="))
    known = [f"config.{key}" for key in leaves(read(path))]
    for argument in argv:
        name = argument.removeprefix("--").split("=", 1)[0]
        if name.startswith("config.") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else "see the config file for its keys."
            return f"The config has no key {name}; {hint}"
    return str(error).strip().splitlines()[0].rstrip(".") + "."


def read(path: str) -> ConfigDict:
    """The config of ``FILE[:ARGUMENT]`` without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", path, flag_values=values, sys_argv=["config"])
    values(["config"])
    return values.config


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of everything that can be set, sections included."""
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ConfigDict):
            names += leaves(value, f"{prefix}{key}.")
    return names
