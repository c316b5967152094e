"""Modules of torch-fidelity, piq, pyiqa and brisque: the references of published metrics.

Their packages import torchvision, whose PyPI build does not load beside a CPU build of torch, and
other libraries that the modules used here do not need. So these modules are imported one by one,
with mocks in place of such libraries, from a folder of their own (launch/setup_env.sh).
"""

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

FOLDER = Path(sys.prefix) / "oracles"
_ABSENT = ("torchvision", "timm", "cv2", "skimage", "libsvm", "clip")


def module(name: str, package: str = "torch_fidelity") -> ModuleType:
    """``PACKAGE.NAME``, without what the ``__init__`` of the packages around it imports."""
    parents = f"{package}.{name}".split(".")[:-1]
    for i in range(1, len(parents) + 1):
        _package(".".join(parents[:i]))
    with mock.patch.object(sys, "meta_path", [_Mocks(), *sys.meta_path]):
        found = importlib.import_module(f"{package}.{name}")
    for mocked in [name for name in sys.modules if name.partition(".")[0] in _ABSENT]:
        del sys.modules[mocked]
    return found


def _package(name: str) -> None:
    """A package in place of ``name``, with the same folder; what its ``__init__`` has is a mock."""
    if name in sys.modules:
        return
    parent, _, _ = name.rpartition(".")
    where = list(sys.modules[parent].__path__) if parent else [*sys.path, str(FOLDER)]
    spec = PathFinder.find_spec(name, where)
    assert spec is not None and spec.submodule_search_locations, f"no {name}: launch/setup_env.sh"
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = list(spec.submodule_search_locations)
    sys.modules[name].__getattr__ = _mocked


class _Mocks:
    """Finds and loads the absent libraries."""

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in _ABSENT
        return ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec):
        return None

    def exec_module(self, found):
        found.__getattr__ = _mocked


def _mocked(name: str) -> mock.MagicMock:
    if name.startswith("__"):
        raise AttributeError(name)
    return mock.MagicMock()


def randomize(net: torch.nn.Module) -> torch.nn.Module:
    """Weights as initialized, and statistics of batch norms that matter: not 0 and 1."""
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return net.eval()


def tensors(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without batch norm's step counters."""
    return {k: v for k, v in net.state_dict().items() if "num_batches_tracked" not in k}
