"""The first use of a kernel on a device: compared with XLA's plain form on a small input.

A kernel of this package or of a vendor runs on chips, drivers and compilers on which nobody has
tested it. So once per process, before any program with it is compiled, its result and its gradients
in bf16 are compared with the plain form in fp32. The bound is on each array's relative error,

    |kernel - plain| <= BOUND |plain|    (Euclidean norms)

Plain attention in bf16 has errors of 2e-3 to 3e-3. A kernel that fails, or that does not compile,
is not used. Nothing is compared on CPUs, which have no such kernel, nor while a step is planned for
devices that are not present.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emu_jax.errors import UserError
from emu_jax.parallel.distributed import on_every_process

BOUND = 1e-2
# What was found: "" for a kernel that may be used, else what is wrong with it.
_found: dict[str, str] = {}
_told: set[str] = set()


def usable(
    name: str,
    mesh: Mesh,
    kernel: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    inputs: Sequence[np.ndarray],
    strict: str = "",
) -> bool:
    """Whether ``kernel`` computes what ``plain`` does, on this process's first device of the mesh.

    Every process of the mesh must call it, and all get the same answer: one process whose kernel
    fails is enough. An unusable kernel is named on stderr, once. ``strict`` is what a user can
    change to go on without it.

    Raises:
      UserError: ``strict`` is given and the kernel is unusable.
    """
    device = local_device(mesh)
    if device is None:
        return True
    if name not in _found:
        _found[name] = difference(kernel, plain, inputs, device)
    wrong = _found[name]
    if len({one.process_index for one in mesh.devices.flat}) > 1:
        failed = sum(on_every_process(int(bool(wrong))))
        wrong = wrong or ("it fails on another host" if failed else "")
    if not wrong:
        return True
    what = f"{name} does not compute what XLA does on {device.device_kind}: {wrong}"
    if strict:
        raise UserError(f"{what}. To go on with XLA's own form, set {strict}.")
    if name not in _told:
        print(f"{what}; XLA's own form is used, which is slower.", file=sys.stderr, flush=True)
        _told.add(name)
    return False


def local_device(mesh: Mesh) -> Any:
    """The first device of the mesh that this process can use; None in planning."""
    own = jax.local_devices()
    return next((x for x in mesh.devices.flat if any(x is device for device in own)), None)


def difference(
    kernel: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    inputs: Sequence[np.ndarray],
    device: Any,
) -> str:
    """What is wrong with the kernel on the device, "" for nothing."""

    def both(form: Callable[..., jax.Array], weight: jax.Array, *given: jax.Array) -> list[Any]:
        result, back = jax.vjp(form, *given)
        return [result, *back(weight.astype(result.dtype))]

    with jax.default_device(device):
        low = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
        exact = [x.astype(jnp.float32) for x in low]
        shape = jax.eval_shape(plain, *exact).shape
        weight = np.cos(np.arange(np.prod(shape))).astype(np.float32).reshape(shape)
        with jax.default_matmul_precision("highest"):
            wanted = jax.device_get(jax.jit(partial(both, plain))(weight, *exact))
        try:
            found = jax.device_get(jax.jit(partial(both, kernel))(weight, *low))
        except Exception as error:  # of any kind: a compiler's, a driver's
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"it does not run ({first[:200]})"
    for what, one, other in zip(("result", *("gradient",) * len(low)), found, wanted, strict=True):
        error = np.linalg.norm(one.astype(np.float32) - other) / np.linalg.norm(other)
        if not error <= BOUND:
            return f"the relative error of its {what} is {error:.2g}, over {BOUND}"
    return ""
