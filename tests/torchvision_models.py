"""torchvision's networks and image transforms, and no other part of it.

Beside a CPU build of torch, the PyPI build of torchvision cannot load its compiled operators, and
whatever imports it fails. So it is installed in a folder of its own (launch/setup_env.sh), and is
imported here without what describes those operators.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

FOLDER = Path(sys.prefix) / "torchvision"


@cache
def models() -> ModuleType:
    return part("models")


def part(name: str) -> ModuleType:
    """``torchvision.NAME``; afterwards torchvision is as absent for others as before."""
    operators = ModuleType("torchvision._meta_registrations")
    sys.modules[operators.__name__] = operators
    with mock.patch.object(sys, "path", [*sys.path, str(FOLDER)]):
        found = importlib.import_module(f"torchvision.{name}")
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
    return found
