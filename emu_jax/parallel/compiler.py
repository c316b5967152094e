"""XLA's flags of every command, and what a checkpoint records of the compiler.

A process reads the flags once, before its first use of a device.
"""

import os
from collections.abc import Mapping
from importlib.metadata import version

# On CPUs XLA 0.10 lets YNNPACK compute matrix products and convolutions, which is slower than its
# own form (docs/records/speed.md, "Two CPU cores"). Sums stay with YNNPACK.
_FLAGS = {"0.10.": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"}
_OF_TOPOLOGY = "--xla_force_host_platform_device_count"


def set_flags() -> None:
    """Puts our flags into XLA_FLAGS, before those of the user: the last one of a name counts.

    XLA ends a process at a flag that it does not know, so the flags belong to versions of jaxlib.
    """
    given = os.environ.get("XLA_FLAGS", "")
    for release, flag in _FLAGS.items():
        if version("jaxlib").startswith(release) and flag not in given:
            os.environ["XLA_FLAGS"] = f"{flag} {given}".strip()


def compiler() -> dict[str, str]:
    """The versions and flags that decide how the programs of this process round."""
    flags = set(os.environ.get("XLA_FLAGS", "").split())
    kept = sorted(flag for flag in flags if not flag.startswith(_OF_TOPOLOGY))
    return {"jax": version("jax"), "jaxlib": version("jaxlib"), "xla_flags": " ".join(kept)}


def difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between the compiler of a checkpoint and the present one, "" for nothing.

    Checkpoints of older versions do not name theirs.
    """
    return ", ".join(
        f"{name} was {then[name]!r} and is {now[name]!r}"
        for name in now
        if name in then and then[name] != now[name]
    )
