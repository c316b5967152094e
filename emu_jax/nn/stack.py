"""Stacks of identical layers: rematerialization, weight gathering and parameter layout.

Rematerialization means that the backward pass recomputes activations instead of storing them. A
policy says which activations of each layer are stored:

    none    all of them; nothing is recomputed
    block   the layer's input only: least memory, one more forward pass
    dots    the layer's input, the results of matrix products (but not the attention weights), and
            what attention kernels store under the name ``ATTENTION``; the cheap rest is recomputed

A scanned stack holds the modules of one layer with a leading axis of layers on every parameter,
under a path segment of its own. ``lax.scan`` runs over that axis, so the layer is compiled once,
whatever the depth.

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

# The path segment under which parameters have a leading axis of layers.
SCANNED = "blocks_scan"
ATTENTION = "attention"

# Brings a layer's sharded weights together; constrains the sharding of an activation.
Gather = Callable[[Any], Any]
Constrain = Callable[[jax.Array], jax.Array]


POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "block": checkpoint_policies.nothing_saveable,
    "dots": checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_with_no_batch_dims_saveable,
        checkpoint_policies.save_only_these_names(ATTENTION),
    ),
}


def remat_policy(name: str | bool) -> str:
    """The checked name of a policy. Stored configs of older models have True for "block" and False
    for "none".

    Raises:
      UserError: no policy has this name.
    """
    if isinstance(name, bool):
        return "block" if name else "none"
    if name not in POLICIES:
        raise UserError(f"remat is {name!r}; choose one of {', '.join(POLICIES)}.")
    return name


def rematerialize(layer: nnx.Module, policy: str, gather: Gather | None = None) -> Callable:
    """``layer`` as a function; ``policy`` names which of its activations are stored.

    ``gather`` brings the layer's weights together from the devices that share them. The backward
    pass gathers again, except with the policy "none", which stores the gathered weights, in the
    compute dtype.
    """
    saveable = POLICIES[policy]

    def gathered(*args: Any) -> Any:
        if gather is None:
            return layer(*args)
        graph, weights = nnx.split(layer)
        return nnx.merge(graph, gather(weights))(*args)

    return gathered if saveable is None else jax.checkpoint(gathered, policy=saveable)


class Stack(nnx.Module):
    """Layers one after another: ``stack(x, *rest)`` computes x = layer(x, *rest) for each of them.

    ``layers`` is a sequence; with ``scan`` the stack is one loop with stacked parameters, which
    start with the values of the given layers. Or it is one module of stacked parameters
    (:func:`drawn`), which is always scanned. ``last`` is a further layer of another structure,
    which is never scanned. ``constrain`` is applied to the output of each layer.
    """

    def __init__(
        self,
        layers: Sequence[nnx.Module] | nnx.Module,
        *,
        scan: bool = False,
        last: nnx.Module | None = None,
        remat: str = "none",
        gather: Gather | None = None,
        constrain: Constrain = lambda x: x,
    ):
        self.remat, self.gather, self.constrain = remat_policy(remat), gather, constrain
        if not isinstance(layers, Sequence):
            assert last is None, "only a sequence of layers can have a last one"
            self.blocks_scan, unrolled = layers, {}
        else:
            self.blocks_scan = _stacked(layers) if scan and layers else None
            unrolled = {} if self.blocks_scan is not None else dict(enumerate(layers))
            if last is not None:
                unrolled[len(layers)] = last
        self.unrolled = tuple(map(str, unrolled))
        for number, layer in unrolled.items():
            setattr(self, str(number), layer)

    def __call__(self, x: Any, *rest: Any) -> Any:
        return self.trace(lambda x: None, x, *rest)[0]

    def trace(self, keep: Callable[[Any], Any], x: Any, *rest: Any) -> tuple[Any, Any]:
        """(the stack's output, ``keep`` of every layer's output on a leading axis of layers)."""
        kept = []
        if self.blocks_scan is not None:
            graph, stacked = nnx.split(self.blocks_scan)

            def body(x: Any, state: nnx.State) -> tuple[Any, Any]:
                x = self._layer(nnx.merge(graph, state), x, *rest)
                return x, keep(x)

            x, scanned = jax.lax.scan(body, x, stacked)
            kept.append(scanned)
        for number in self.unrolled:
            x = self._layer(getattr(self, number), x, *rest)
            kept.append(jax.tree.map(lambda y: y[None], keep(x)))
        return x, jax.tree.map(lambda *y: jnp.concatenate(y), *kept) if kept else None

    @property
    def first(self) -> Any:
        """The first layer, by itself."""
        if self.blocks_scan is None:
            return getattr(self, self.unrolled[0])
        graph, stacked = nnx.split(self.blocks_scan)
        return nnx.merge(graph, jax.tree.map(lambda x: x[0], stacked))

    def _layer(self, layer: nnx.Module, x: Any, *rest: Any) -> Any:
        return jax.tree.map(self.constrain, rematerialize(layer, self.remat, self.gather)(x, *rest))


def _stacked(layers: Sequence[nnx.Module]) -> nnx.Module:
    graph, first = nnx.split(layers[0])
    states = [first, *(nnx.state(layer) for layer in layers[1:])]
    return nnx.merge(graph, jax.tree.map(lambda *x: jnp.stack(x), *states))


def drawn(make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """``depth`` layers as one module of stacked parameters. ``make`` is traced once, and each layer
    is drawn from a key of its own.
    """
    if depth < 1:
        raise UserError(f"A stack has depth {depth}; use 1 or more.")
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    layers = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))
    return nnx.merge(graph, layers(jax.random.split(rngs.params(), depth)))


# Paths of parameters ------------------------------------------------------------------------------


def is_scanned(path: str) -> bool:
    """Whether the parameter has a leading axis of layers."""
    return SCANNED in path.split("/")


def layer_path(path: str, i: int) -> str:
    """The path of layer ``i`` of the scanned parameter ``path`` in the unrolled layout."""
    return path.replace(SCANNED, str(i), 1)


def relaid(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` with layers stacked and unstacked as the paths of ``wanted`` require; everything
    else is unchanged.

    All arrays are of one kind: on the host, or traced. A stack with fewer layers than wanted, or
    with more, which are not wanted under their own numbers, stays as it is.
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
    """``params`` with every layer of a scanned stack under its own number."""
    found = {}
    for path, value in params.items():
        if is_scanned(path):
            found |= {layer_path(path, i): layer for i, layer in enumerate(value)}
        else:
            found[path] = value
    return found
