"""Registries: what a config or a command can name.

A registry is a dict from a name to an entry, which says what it builds and what that takes. Code
outside the package adds an entry of its own, e.g. ``SAMPLERS["mine"] = SamplerKind(...)``.

The names must be known before JAX is imported, because a mistyped name is answered at once. So the
registries of the package import nothing that they name: their entries are :class:`Lazy`.

    denoisers             emu_jax.nn.denoisers
    processes, schedules, samplers
                          emu_jax.process.registry
    text encoders         emu_jax.text.registry
    optimizers, learning-rate schedules
                          emu_jax.training.registry
    metrics               emu_jax.evaluation.registry
    codecs                emu_jax.assembly.sections.codecs
    tasks                 emu_jax.assembly.tasks
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from emu_jax.errors import UserError

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Lazy:
    """``Lazy("module:name")(...)`` calls what ``module`` defines as ``name``, and imports the
    module only then.
    """

    target: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)

    def load(self) -> Any:
        """What the module defines."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


def loaded(target: Any) -> Any:
    """A class or a function itself, where an entry may name it by a :class:`Lazy`."""
    return target.load() if isinstance(target, Lazy) else target


def look_up(registry: Mapping[str, Entry], name: str, key: str) -> Entry:
    """The entry called ``name``; ``key`` is the config's key, for the message of the UserError."""
    if name not in registry:
        raise UserError(f"{key} is {name!r}; use one of {', '.join(registry)}.")
    return registry[name]
