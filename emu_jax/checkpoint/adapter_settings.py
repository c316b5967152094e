"""The settings that an adapter comes with: peft's adapter_config.json, or the same entries in the
header of a file that diffusers wrote.

Every entry is used, harmless, or refused by name (:func:`read_settings`). An adapter only changes
the model as its author meant if none is ignored: some change the base before training, some scale
the factors, some add further parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emu_jax.checkpoint.foreign import entry
from emu_jax.errors import UserError

# What peft takes where lora_alpha is absent.
_ALPHA = 8.0
# Initial values that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga, ...)
# subtract the first factors from the base.
_BASE_UNCHANGED = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# Used in training only, or visible in the tensors themselves (which modules, of which rank), or
# options of an entry that is checked itself.
_HARMLESS = {
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "lora_dropout", "inference_mode", "task_type", "auto_mapping"),
    *("base_model_name_or_path", "revision", "peft_version", "megatron_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
# Values with which any other entry has no effect.
_OFF = (None, False, "", "none", [], {})


@dataclass(frozen=True)
class Settings:
    """``alpha`` None: nothing is said, and alpha equals the rank."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    stabilized: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A in ``module``: alpha / rank, or alpha / sqrt(rank) if stabilized
        (rsLoRA, Kalajdzievski 2023)."""
        alpha = self.alpha if self.alpha is not None else float(rank)
        for pattern, value in self.patterns.items():
            name = pattern.removeprefix("^")
            if module == name or (name == pattern and module.endswith(f".{name}")):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.stabilized else rank)


def read_settings(entries: Mapping[str, Any], source: Any) -> Settings:
    """The settings of one network. ``source``: the file, for messages.

    Raises:
      UserError: an entry that would change the model in a way that is not supported, by name.
    """
    if not entries:
        return Settings()
    kind = entries.get("peft_type", "LORA")
    if kind not in ("LORA", None):
        raise UserError(f"{source} has peft_type {kind!r}, which is not supported; use LORA.")
    init = entries.get("init_lora_weights")
    if not isinstance(init, str | bool | None) or init not in _BASE_UNCHANGED:
        raise UserError(
            f"{source} has init_lora_weights = {init!r}, which changes the base before training, "
            "so its factors do not belong to the plain base; convert the adapter with peft "
            "(save_pretrained with path_initial_model_for_weight_conversion)."
        )
    for name, value in entries.items():
        known = ("lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights", "peft_type")
        if name not in (*known, *_HARMLESS) and value not in _OFF:
            raise UserError(
                f"{source} has {name} = {value!r}, which is not supported: merge the adapter into "
                "its base with the program that made it."
            )
    alpha = _number(entries, "lora_alpha", source) if "lora_alpha" in entries else _ALPHA
    patterns = entries.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{source}: alpha_pattern is {patterns!r}; it must be an object.")
    for pattern in patterns:
        # A regular expression of a stranger could run for ever.
        if not pattern.removeprefix("^").replace("_", "").replace(".", "").isalnum():
            raise UserError(
                f"{source}: alpha_pattern has the regular expression {pattern!r}; only names of "
                "modules are supported."
            )
    stabilized = entries.get("use_rslora") or False
    if not isinstance(stabilized, bool):
        raise UserError(f"{source}: use_rslora is {stabilized!r}; it must be true or false.")
    return Settings(alpha, {p: _number(patterns, p, source) for p in patterns}, stabilized)


def _number(entries: Mapping[str, Any], name: str, source: Any) -> float:
    value = float(entry(entries, name, (int, float), source))
    if not math.isfinite(value):
        raise UserError(f"{source}: the entry {name!r} is {value}; it must be a finite number.")
    return value
