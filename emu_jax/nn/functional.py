"""A Flax NNX module as pure functions of a flat dict of parameters.

Outside ``emu_jax.nn`` parameters are always ``Params``: a flat dict from a path such as
``"down_blocks/0/resnets/1/conv1/kernel"`` to an array. So path filters, sharding rules, EMA,
checkpoints and safetensors files all use the same names, and no integer key or module class is ever
written to a file.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


class _Keys(nnx.Rngs):
    """``nnx.Rngs`` with a counter in Python.

    Flax has the counter in an array. Under tracing, each increment then walks over everything that
    was traced before: SDXL's shapes alone took 46 s instead of 2.4 s.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._drawn = 0

    def params(self) -> jax.Array:
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn)


class Network:
    """``build(rngs)`` as ``init(key) -> Params`` and ``network(params, *args, method=...)``."""

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        self._graph, abstract = nnx.split(nnx.eval_shape(lambda: build(_Keys(jax.random.key(0)))))
        self._shapes = {_join(p): v.get_value() for p, v in nnx.to_flat_state(abstract)}
        self._abstract = abstract

    def init(self, key: jax.Array) -> Params:
        """Initial fp32 parameters, a function of the key; works under ``jax.eval_shape``."""
        state = nnx.state(self._build(_Keys(key)))
        return {_join(p): v.get_value() for p, v in nnx.to_flat_state(state)}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return dict(self._shapes)

    def __call__(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        module = nnx.merge(self._graph, self._fill(params))
        return getattr(module, method)(*args, **kwargs)

    def _fill(self, params: Params) -> nnx.State:
        flat = nnx.to_flat_state(self._abstract)
        return nnx.from_flat_state([(p, v.replace(params[_join(p)])) for p, v in flat])


def _join(path: tuple[Any, ...]) -> str:
    return "/".join(str(part) for part in path)


def subtree(params: Params, prefix: str) -> Params:
    """The parameters under ``prefix/``, without the prefix."""
    head = prefix + "/"
    return {path[len(head) :]: value for path, value in params.items() if path.startswith(head)}


def nest(prefix: str, params: Params) -> Params:
    """The inverse of :func:`subtree`."""
    return {f"{prefix}/{path}": value for path, value in params.items()}
