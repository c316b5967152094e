"""The adapters that a config asks for, by the section that configures each."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from emu_jax.nn.arguments import check_arguments
from emu_jax.nn.control import ControlAdapter
from emu_jax.nn.lora import Lora
from emu_jax.nn.text_adapter import TextAdapter, TextAdapters
from emu_jax.tasks.adapting import Adapter


def make_lora(config: ConfigDict) -> Lora | None:
    """``config.lora``; None where rank is 0 (older configs have no such section)."""
    section = config.get("lora")
    if not section or not section.rank:
        return None
    return Lora(section.rank, section.alpha, section.pattern)


def make_text_adapters(config: ConfigDict) -> TextAdapters | None:
    """``config.adapter``, in a run that trains nothing else; merged, it is part of a generator."""
    return TextAdapters(adapter_options(config)) if "distillation" in config else None


def make_control_adapter(config: ConfigDict) -> ControlAdapter | None:
    """``config.control`` in a run that trains it; merged, it is part of a generator."""
    section = config.get("control")
    if not section or not section.hint or not section.train:
        return None
    return ControlAdapter(section.hint_channels, tuple(section.hint_widths))


def adapter_options(config: ConfigDict) -> dict[str, Any]:
    """The options of :class:`emu_jax.nn.text_adapter.TextAdapter` in ``config.adapter``."""
    options = config.adapter.to_dict()
    options.pop("on_null", None)
    check_arguments(TextAdapter, options, "adapter")
    return options


# Name -> what makes the adapter of a config, or None where the config does not ask for it.
ADAPTERS: dict[str, Callable[[ConfigDict], Adapter | None]] = {
    "lora": make_lora,
    "text": make_text_adapters,
    "control": make_control_adapter,
}


def make_adapters(config: ConfigDict) -> Mapping[str, Adapter]:
    """Every adapter that the config asks for, in the order in which they are laid over the base."""
    made = {name: make(config) for name, make in ADAPTERS.items()}
    return {name: adapter for name, adapter in made.items() if adapter is not None}
