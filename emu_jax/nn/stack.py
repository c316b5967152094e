"""Equal layers on top of each other: which of their activations are kept, and as what they lie.

Rematerialisation: the backward pass computes a layer's activations anew instead of keeping them.
A policy says what is kept of every layer all the same:

    none    everything; nothing is computed twice
    block   its input only: least memory, one more forward pass
    dots    its input, results of matrix products (attention's weights are none of them), and what
            attention kernels keep under the name ``ATTENTION``: the cheap rest is computed anew

A scanned stack has one layer's modules with a leading axis of layers on every parameter, under a
path segment of its own, and is walked along by ``lax.scan``: compiled once, however high.

    .../0/to_q/kernel [i, o], .../1/to_q/kernel [i, o]  <->  .../blocks_scan/to_q/kernel [2, i, o]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies

from emu_jax.errors import UserError

# The segment of a path under which parameters carry a leading axis of layers.
SCANNED = "blocks_scan"
ATTENTION = "attention"

Gather = Callable[[Any], Any]


POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "block": checkpoint_policies.nothing_saveable,
    "dots": checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_with_no_batch_dims_saveable,
        checkpoint_policies.save_only_these_names(ATTENTION),
    ),
}


def is_scanned(path: str) -> bool:
    """Whether the parameter has a leading axis of layers."""
    return SCANNED in path.split("/")


def layer_path(path: str, i: int) -> str:
    """What the ``i``-th layer of the stack at ``path`` would be called by its own number."""
    return path.replace(SCANNED, str(i), 1)


def rematerialised(layer: nnx.Module, policy: str, gather: Gather | None = None) -> Callable:
    """``layer``, of whose activations ``policy`` says what is kept.

    ``gather`` brings weights together from the devices that share them; the backward pass does so
    again, but for ``none``, which keeps them, in the compute dtype.

    Raises:
      UserError: there is no such policy.
    """
    require_policy(policy)

    def gathered(*args: Any) -> Any:
        if gather is None:
            return layer(*args)
        graph, weights = nnx.split(layer)
        return nnx.merge(graph, gather(weights))(*args)

    kept = POLICIES[policy]
    return gathered if kept is None else jax.checkpoint(gathered, policy=kept)


def require_policy(policy: str) -> None:
    """Raises a UserError where no policy has this name."""
    if policy not in POLICIES:
        raise UserError(f"remat is one of {', '.join(POLICIES)}, not {policy!r}.")


class Scanned(nnx.Module):
    """Layers of one structure as one loop; ``scanned(x, *rest)`` hands each ``layer(x, *rest)`` on.

    They start as the given ones, one after the other, would.
    """

    def __init__(self, layers: Sequence[nnx.Module]):
        graph, first = nnx.split(layers[0])
        states = [first, *(nnx.state(layer) for layer in layers[1:])]
        self.blocks_scan = nnx.merge(graph, jax.tree.map(lambda *x: jnp.stack(x), *states))

    def __call__(self, x: Any, *rest: Any, around: Callable[[nnx.Module], Callable]) -> Any:
        """``around`` is put around every layer: rematerialisation, constraints."""
        graph, stacked = nnx.split(self.blocks_scan)

        def body(x: Any, state: nnx.State) -> tuple[Any, None]:
            return around(nnx.merge(graph, state))(x, *rest), None

        return jax.lax.scan(body, x, stacked)[0]


def relaid(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` with stacks built and cut as the paths of ``wanted`` ask for; the rest as it is.

    Arrays of one kind: on the host, or traced. A stack that lacks layers, or has some more that are
    not wanted by themselves, stays as it lies.
    """
    found = dict(params)
    for path, shape in wanted.items():
        if path in found or not is_scanned(path):
            continue
        layers = [layer_path(path, i) for i in range(shape.shape[0])]
        more = layer_path(path, len(layers))
        if all(layer in found for layer in layers) and (more in wanted or more not in found):
            parts = [found.pop(layer) for layer in layers]
            found[path] = (np if isinstance(parts[0], np.ndarray) else jnp).stack(parts)
    cut = unstacked({path: value for path, value in found.items() if path not in wanted})
    return {path: value for path, value in found.items() if path in wanted} | cut


def unstacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Every layer of a scanned stack under its own number."""
    found = {}
    for path, value in params.items():
        if is_scanned(path):
            found |= {layer_path(path, i): layer for i, layer in enumerate(value)}
        else:
            found[path] = value
    return found
