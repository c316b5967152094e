"""Model FLOPs: the FLOPs that the mathematics of a model needs, counted in the jaxpr before
compilation.

Matrix products and convolutions count, two FLOPs per multiplication. Elementwise operations do not
count, because the peak of a chip does not include them. Filter taps of a convolution on padding are
not counted. A loop counts as often as it iterates, a conditional as its most expensive branch, and
a kernel by :mod:`emu_jax.planning.kernels`.

The FLOPs of a training step are those of the gradients of its losses without rematerialization:
frozen networks count forward only, trained networks forward and backward, and nothing counts twice.
The optimizer and the average do not count. The step is one in which every group is updated, even if
some groups are updated more rarely (``every`` > 1).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from emu_jax.nn.functional import Params
from emu_jax.planning.hlo import Shape
from emu_jax.planning.kernels import work_of
from emu_jax.tasks.base import Batch, Context, Loss, Task
from emu_jax.training.state import TrainState

_CHECKPOINT = "remat2"  # what jax.checkpoint becomes


def count_flops(f: Callable, *args: Any) -> float:
    """FLOPs of ``f(*args)``. The arguments are arrays or ShapeDtypeStructs."""
    return _flops(jax.make_jaxpr(f)(*args).jaxpr)


def gradient_flops(loss: Callable, trained: Params, *args: Any) -> float:
    """FLOPs of ``jax.value_and_grad(loss)(trained, *args)`` without rematerialization."""
    closed = jax.make_jaxpr(loss)(trained, *args)
    flat = core.jaxpr_as_fun(_without_remat(closed))

    def rebuilt(trained: Params, *args: Any) -> jax.Array:
        return flat(*jax.tree.leaves((trained, *args)))[0]

    return count_flops(jax.value_and_grad(rebuilt), trained, *args)


def step_flops(
    task: Task, state: TrainState, frozen: Mapping[str, Params], batch: Batch
) -> dict[str, float]:
    """Group -> FLOPs of the gradient of its loss for the whole batch."""
    found, handed = {}, {}
    for name, group in task.groups.items():
        params = state["params"]
        paths = set(group.paths(params))
        trained = {path: value for path, value in params.items() if path in paths}
        rest = {path: value for path, value in params.items() if path not in paths}

        def result(
            trained: Params,
            rest: Params,
            frozen: Any,
            task_state: Any,
            batch: Any,
            handed: Any,
            name=name,
        ) -> Loss:
            whole = {**rest, **trained}
            averages = jax.lax.stop_gradient(whole)
            key, step = jax.random.key(0), jax.numpy.int32(0)
            context = Context(
                whole, frozen, task_state, batch, key, step, lambda: averages, dict(handed)
            )
            return task.loss(name, context)

        args = trained, rest, frozen, state["state"], batch, dict(handed)
        found[name] = gradient_flops(lambda *args, result=result: result(*args).value, *args)
        if len(task.groups) > 1:
            handed[name] = jax.eval_shape(result, *args).handed
    return found


def _flops(jaxpr: core.Jaxpr, inside: str = "") -> float:
    """FLOPs of a jaxpr. ``inside`` names the enclosing functions; kernels are found by name."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "conv_general_dilated":
            total += _conv(eqn)
        elif name == "pallas_call":
            name = f"{inside}/{eqn.source_info.name_stack}/{params['name']}"
            total += work_of(name, [_shape(v) for v in eqn.invars]).model_flops
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"].jaxpr, inside)
        elif name == "cond":
            total += max(_flops(branch.jaxpr, inside) for branch in params["branches"])
        else:
            # The body of a while loop counts once: its number of iterations is unknown.
            name = f"{inside}/{params.get('name', '')}"
            total += sum(_flops(jaxpr, name) for jaxpr in _inner(eqn))
    return total


def _inner(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The jaxprs in an equation's parameters."""
    found = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
    )
    jaxprs = [x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in found]
    return [x for x in jaxprs if isinstance(x, core.Jaxpr)]


def _without_remat(x: Any) -> Any:
    """A jaxpr, or any parameter of an equation, with all activations saved."""
    if isinstance(x, core.Jaxpr):  # first, because a ClosedJaxpr is a Jaxpr too from jax 0.11 on
        return x.replace(eqns=[_save_everything(eqn) for eqn in x.eqns])
    if isinstance(x, core.ClosedJaxpr):
        closed: Any = x
        return closed.replace(jaxpr=_without_remat(x.jaxpr))
    return tuple(map(_without_remat, x)) if type(x) is tuple else x  # named tuples stay as they are


def _save_everything(eqn: core.JaxprEqn) -> core.JaxprEqn:
    params = {key: _without_remat(value) for key, value in eqn.params.items()}
    if eqn.primitive.name == _CHECKPOINT:
        params["policy"] = jax.checkpoint_policies.everything_saveable
    return eqn.replace(params=params)


def _shape(variable: Any) -> Shape:
    return str(variable.aval.dtype), variable.aval.shape


def _dot(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    (_, lhs), (_, out) = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    return 2.0 * math.prod(out) * math.prod(lhs[i] for i in contracted)


def _conv(eqn: core.JaxprEqn) -> float:
    params = eqn.params
    numbers = params["dimension_numbers"]
    lhs, rhs, out = (_shape(v)[1] for v in (*eqn.invars, eqn.outvars[0]))
    taps = [
        _taps(lhs[i], rhs[j], out[k], *window)
        for i, j, k, *window in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    batch, features = (lhs[i] for i in numbers.lhs_spec[:2])
    groups = params["feature_group_count"] * params["batch_group_count"]
    return 2.0 * batch * features * rhs[numbers.rhs_spec[0]] * math.prod(taps) / groups


def _taps(
    size: int,
    window: int,
    outputs: int,
    stride: int,
    padding: tuple[int, int],
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """The number of pairs (output, filter tap on an input) along one dimension."""
    index = (
        np.arange(outputs)[:, None] * stride + np.arange(window)[None] * rhs_dilation - padding[0]
    )
    inside = (index >= 0) & (index <= (size - 1) * lhs_dilation) & (index % lhs_dilation == 0)
    return int(inside.sum())
