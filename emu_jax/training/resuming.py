"""What may change in the config of a run that is resumed: a list; every other change is an error.

A resumed run equals the unbroken one. A change of the keys below does not change what the remaining
steps compute, or is what a user resumes for (more steps, another device mesh).
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from emu_jax.errors import UserError

# Regular expressions of dotted keys, matched as a whole.
MAY_CHANGE = (
    r"train\.(steps|log_every|validate_every|preview_every|preview_prompts|checkpoint_every)",
    r"train\.(keep_last|keep_best|best_metric|stop\..*|max_skipped_in_row|profile_.*|wandb)",
    r"data\.(data_dir|workers|threads|cache_dir|cache_latents|cache_text|validation\..*)",
    r"mesh\..*",
    r"attention",
    r"deterministic",
    r"measure\..*",
    r"sampling\..*",  # of previews
    r"labeled\.(score|agnostic)",  # of what is found, not of what is learned
    # Starting points and frozen networks, which a checkpoint knows by fingerprint.
    r"init_from",
    r"init_skip",
    r"(codec|low_codec|text\.[^.]+)\.path",
    r"loss\.perceptual_path",
)


def require_same_config(then: Mapping[str, Any], now: Mapping[str, Any], workdir: str) -> None:
    """Raises a UserError for the first key that differs and may not.

    ``then`` is the config that the run was begun with, as its checkpoint has it. A key that only
    one of the two has was added or removed by a version of this package, and is left alone.
    """
    before, after = (dict(_leaves(json.loads(json.dumps(c)))) for c in (then, now))
    for key in before.keys() & after.keys():
        allowed = any(re.fullmatch(pattern, key) for pattern in MAY_CHANGE)
        if before[key] != after[key] and not allowed:
            raise UserError(
                f"config.{key} is {after[key]!r}, but the run in {workdir} was begun with "
                f"{before[key]!r}: use that value again, or start in a new workdir with init_from."
            )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
