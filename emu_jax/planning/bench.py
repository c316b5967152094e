"""The measured speed of a training step and of a sampler on the available devices.

n is the number of devices, t the median time of the calls after the warm-up, and F the model FLOPs
of one call by :mod:`emu_jax.planning.flops` (recomputation is not counted):

    TFLOP/s per device = F / n / t / 10^12                                                       (1)
    MFU = F / n / t / peak                                                                       (2)

The peak is the bf16 peak, even if a config computes in fp32. The benchmark waits for every call, so
the time of a call includes the host's time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from emu_jax.nn.functional import Params
from emu_jax.planning.chips import peak_of
from emu_jax.planning.flops import count_flops
from emu_jax.planning.gpus import Gpu
from emu_jax.planning.inputs import synthetic
from emu_jax.planning.profile import profiled
from emu_jax.planning.sampler import make_sampler
from emu_jax.tasks.base import Batch, Task, images_in
from emu_jax.training.state import TrainState, fresh_params, start_state
from emu_jax.training.step import jit_step


@dataclass(frozen=True)
class Speed:
    """The measured speed of one function.

    ``seconds`` has the time of every call after the warm-up. ``flops`` are those of one call for
    all ``images``. ``peak`` is the peak of one device in FLOP/s, None if it is unknown. ``memory``
    is the peak memory of one device in bytes, None if the device does not report it. ``kernels``
    are those of :mod:`emu_jax.planning.profile`, if they were asked for.
    """

    images: int
    devices: int
    flops: float
    peak: float | None
    compile_seconds: float
    seconds: tuple[float, ...]
    memory: int | None = None
    kernels: Mapping[str, Any] | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile."""
        low, high = np.percentile(self.seconds, (10, 90))
        return float(low), float(high)

    @property
    def flops_per_second(self) -> float:
        """FLOP/s per device: equation (1) without the factor 10^12."""
        return self.flops / self.devices / self.median

    @property
    def mfu(self) -> float | None:
        return None if self.peak is None else self.flops_per_second / self.peak

    @property
    def images_per_second(self) -> float:
        """Images per second per device."""
        return self.images / self.devices / self.median

    def record(self) -> dict[str, Any]:
        """The speed as JSON, in seconds, bytes and FLOPs."""
        low, high = self.spread
        return {
            "images": self.images,
            "seconds": self.median,
            "seconds_10": low,
            "seconds_90": high,
            "every_seconds": list(self.seconds),
            "images_per_second_a_device": self.images_per_second,
            "model_flops": self.flops,
            "tflops_per_second_a_device": self.flops_per_second / 1e12,
            "mfu": self.mfu,
            "compile_seconds": self.compile_seconds,
            "peak_memory": self.memory,
            **({} if self.kernels is None else {"kernels": dict(self.kernels)}),
        }

    def line(self, name: str, kind: str) -> str:
        """One line to print; ``kind`` is the kind of device."""
        low, high = (1e3 * seconds for seconds in self.spread)
        if self.mfu is None:
            used = f"MFU unknown (no peak FLOP/s known for {kind})"
        else:
            used = f"MFU {self.mfu:.1%}"
        return (
            f"{name}: {self.images} images on {self.devices} x {kind} in {1e3 * self.median:.4g} "
            f"ms (10th to 90th percentile of {len(self.seconds)} calls: {low:.4g} to {high:.4g}), "
            f"{self.images_per_second:.4g} img/s and {self.flops_per_second / 1e12:.4g} TFLOP/s "
            f"per device, {used}; compiled in {self.compile_seconds:.1f} s"
        )


def bench_step(
    task: Task,
    mesh: Mesh,
    state: TrainState,
    frozen: Mapping[str, Params],
    batch: Batch,
    flops: float,
    *,
    seed: int = 0,
    accumulate: int = 1,
    warmup: int = 2,
    repeats: int = 10,
    gpu: Gpu | None = None,
) -> tuple[Speed, TrainState]:
    """(speed of the training step, final state).

    ``state`` and ``batch`` are abstract and have shardings on the mesh. The state is initialized
    with ``seed``; the batch is synthetic. ``frozen`` holds arrays. ``gpu`` is the GPU whose
    kernels are profiled.
    """
    made = synthetic(batch, jax.random.key(seed))
    held = start_state(task, mesh, *fresh_params(task, seed, mesh))
    step = jit_step(task, state, mesh, seed=seed, accumulate=accumulate)
    compiled, compile_seconds = _compiled(step, held, frozen, made)

    def call() -> Any:
        nonlocal held
        held, metrics = compiled(held, frozen, made)
        return held, metrics

    seconds = _timed(call, warmup, repeats)
    speed = _speed(images_in(batch), mesh, flops, compile_seconds, seconds)
    return _with_kernels(speed, call, compiled, gpu), held


def bench_sampler(
    adapted: Task,
    mesh: Mesh,
    params: Params,
    frozen: Mapping[str, Params],
    side: int,
    images: int,
    *,
    warmup: int = 2,
    repeats: int = 10,
    gpu: Gpu | None = None,
) -> Speed:
    """The speed of :func:`emu_jax.planning.sampler.make_sampler`, from the outputs of the text
    encoders to uint8 pixels. ``params`` are those of ``adapted``.
    """
    draw, names, rows, images = make_sampler(adapted, mesh, side, images)
    made = synthetic(rows, jax.random.key(0))
    used = {name: frozen[name] for name in names if name in frozen}
    flops = count_flops(draw, params, used, made)
    compiled, compile_seconds = _compiled(jax.jit(draw), params, used, made)

    def call() -> Any:
        return compiled(params, used, made)

    seconds = _timed(call, warmup, repeats)
    speed = _speed(images, mesh, flops, compile_seconds, seconds)
    return _with_kernels(speed, call, compiled, gpu)


def _with_kernels(speed: Speed, call: Callable[[], Any], compiled: Any, gpu: Gpu | None) -> Speed:
    if gpu is None:
        return speed
    return replace(speed, kernels=profiled(call, compiled.as_text(), gpu, speed.median))


def _compiled(f: Any, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return f.lower(*args).compile(), time.perf_counter() - start


def _timed(call: Callable[[], Any], warmup: int, repeats: int) -> tuple[float, ...]:
    seconds = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[warmup:])


def _speed(
    images: int, mesh: Mesh, flops: float, compile_seconds: float, seconds: tuple[float, ...]
) -> Speed:
    device = mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    peak = peak_of(device.device_kind)
    return Speed(images, mesh.size, flops, peak, compile_seconds, seconds, memory)
