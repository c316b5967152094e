"""The names that a config may give for optimizers and learning-rate schedules: one line an entry.

    OPTIMIZERS["mine"] = make_mine

An optimizer takes the keys of the config's ``optimizer`` section and the learning-rate schedule,
and returns an optax transformation; a schedule takes (learning_rate, steps, warmup, final) and
returns the learning rate of update n after the warmup.
"""

from collections.abc import Callable
from typing import Any

from emu_jax.registry import Lazy

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": Lazy("emu_jax.training.optimizers:make_adamw"),
    "adafactor": Lazy("emu_jax.training.optimizers:make_adafactor"),
}

RATES: dict[str, Callable[..., Any]] = {
    "constant": Lazy("emu_jax.training.optimizers:constant"),
    "cosine": Lazy("emu_jax.training.optimizers:cosine"),
    "linear": Lazy("emu_jax.training.optimizers:linear"),
    "rsqrt": Lazy("emu_jax.training.optimizers:rsqrt"),
}
