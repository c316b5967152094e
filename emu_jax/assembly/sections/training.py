"""``config.train``, ``config.groups`` and ``config.mesh``: how parameters are updated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from emu_jax.assembly.schema import Section, key, required
from emu_jax.assembly.sections.data import MAX_BATCH
from emu_jax.training.registry import OPTIMIZERS, RATES


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """An optimizer and its learning-rate schedule (:mod:`emu_jax.training.optimizers`)."""

    name: Annotated[str, OPTIMIZERS] = key("adamw", "The optimizer.")
    learning_rate: float = key(1e-4, "Largest learning rate.", at_least=0)
    schedule: Annotated[str, RATES] = key("constant", "Learning rate after the warmup.")
    warmup: int = key(0, "Updates in which the learning rate rises linearly.", at_least=0)
    final: float = key(
        0.0, "Share of the learning rate at the last step, of cosine and linear.", at_least=0
    )
    b1: float = key(0.9, "Decay of the first moment.", at_least=0, below=1)
    b2: float = key(0.999, "Decay of AdamW's second moment.", at_least=0, below=1)
    eps: float = key(1e-8, "AdamW's epsilon.", at_least=0)
    weight_decay: float = key(0.0, "Decoupled decay of matrices and kernels.", at_least=0)
    clip: float = key(1.0, "Largest global norm of the gradient; 0: any.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Group(Section):
    """A set of parameters that is updated together."""

    pattern: str = required("Regular expression, matched at the start of paths.", regex=True)
    first_step: int = key(0, "First step in which the group is updated.", at_least=0)
    every: int = key(1, "Period of its updates, in steps.", at_least=1)
    phase: int = key(0, "Step within the period in which it is updated.", at_least=0)
    ema_decay: float | None = key(
        None,
        "Decay of the average that is validated, sampled and exported; 0 or None: no average.",
        at_least=0,
        below=1,
    )
    optimizer: Optimizer = key(Optimizer, "How it is updated.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.phase >= self.every:
            yield "phase", f"a step of the period, less than every, which is {self.every}"


@dataclass(frozen=True, kw_only=True)
class Mesh(Section):
    """The device mesh."""

    data: int = key(-1, "Devices along the data axis; -1: all that fsdp leaves.", at_least=-1)
    fsdp: int = key(1, "Devices that share parameters and optimizer state; -1: all.", at_least=-1)
    slices: int = key(1, "Groups of devices with slow links between them.", at_least=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        for axis in ("data", "fsdp"):
            if not getattr(self, axis):
                yield axis, "1 or more, or -1 for what the other axis leaves"
        if self.data == self.fsdp == -1:
            yield "fsdp", "1 or more, as mesh.data is -1 too"


@dataclass(frozen=True, kw_only=True)
class Stop(Section):
    """Early stopping (:mod:`emu_jax.training.stopping`)."""

    metric: str = key("", "What a validation measures, e.g. kept/loss; empty: never stop early.")
    mode: Literal["min", "max"] = key("min", "Whether the least or the greatest value is best.")
    patience: int = key(3, "Validations without improvement after which a run ends.", at_least=1)
    min_delta: float = key(0.0, "Least improvement that counts.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The training loop. A period (``*_every``) of 0 means never."""

    steps: int = key(1000, "Number of training steps.", at_least=1)
    batch_size: int = key(64, "Images in a batch, over all hosts.", at_least=1, at_most=MAX_BATCH)
    seed: int = key(0, "Seed of parameters, data and noise.", at_least=0, at_most=2**32 - 1)
    accumulate: int = key(
        1, "Micro-batches into which a batch is divided; gradients are averaged.", at_least=1
    )
    log_every: int = key(50, "Steps between two entries of the log.", at_least=0)
    validate_every: int = key(500, "Steps between two validations.", at_least=0)
    preview_every: int = key(500, "Steps between two image grids.", at_least=0)
    checkpoint_every: int = key(500, "Steps between two checkpoints.", at_least=0)
    keep_last: int = key(2, "Number of newest checkpoints that are kept.", at_least=1)
    keep_best: int = key(0, "Number of best checkpoints that are kept.", at_least=0)
    best_metric: str = key("", "Metric of the best checkpoints, the least is best.")
    stop: Stop = key(Stop, "Early stopping; keeps the best checkpoint.")
    max_skipped_in_row: int = key(
        5, "Steps in a row with a loss that is not finite after which a run ends.", at_least=1
    )
    profile_start: int = key(10, "First step of the profile.", at_least=0)
    profile_steps: int = key(0, "Steps that are profiled.", at_least=0)
    wandb: bool = key(False, "Log to Weights & Biases as well.")
    preview_prompts: tuple[str, ...] = key((), "Prompts of the image grids; empty: captions.")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.batch_size % self.accumulate:
            yield "accumulate", f"a divisor of train.batch_size, {self.batch_size}"
