"""torch-fidelity's modules: the reference of published metrics.

Its ``__init__`` imports torchvision, whose PyPI build does not load beside a CPU build of torch.
The modules used here compute without it, so they are imported one by one.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch


def module(name: str) -> ModuleType:
    """``torch_fidelity.NAME``."""
    if "torch_fidelity" not in sys.modules:
        spec = find_spec("torch_fidelity")
        assert spec is not None, "pip install --no-deps torch-fidelity"
        package = ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
    return importlib.import_module(f"torch_fidelity.{name}")


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
