"""Training steps of the small networks here and in PyTorch, in turns.

    python tests/step_speed.py [latent] [autoencoder] [--rounds=9] [--batch=32] [--no-compile]

The same network on both sides: diffusers' class with the structure that ``emu-jax export`` writes.
Each step has a loss, its gradient clipped by norm, AdamW and an average of the weights, in fp32, on
all cores. PyTorch runs eagerly and by ``torch.compile``; the faster of both counts. A round runs
every step once, and ratios are taken within a round.
"""

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from emu_jax.assembly.cost import step_batch
from emu_jax.assembly.tasks import make_task, unused_networks
from emu_jax.assembly.training import prepare
from emu_jax.interop import autoencoder, unet
from emu_jax.parallel.compiler import set_flags
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.placement import placement
from emu_jax.planning.inputs import abstract_frozen, synthetic
from emu_jax.training.state import abstract_state, fresh_params, start_state
from emu_jax.training.step import jit_step

TEXT_WIDTH, CHANNELS, FACTOR = 384, 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="latent|autoencoder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    values = parser.parse_args()
    set_flags()
    for name in values.names:
        compare(name, *CASES[name](values.batch), values.rounds, values.compiled)


def latent(batch: int) -> tuple[Any, torch.nn.Module, Callable[[Any], torch.Tensor]]:
    config = importlib.import_module("configs.latent_diffusion").get_config(
        "size=tiny,stage=compose"
    )
    config.train.batch_size = batch
    sizes = dict(in_channels=CHANNELS, out_channels=CHANNELS, context_width=TEXT_WIDTH)
    network = UNet2DConditionModel(**public(unet.to_config({**config.denoiser, **sizes})))
    side = config.data.image_size // FACTOR
    x, noise = torch.randn(2, batch, CHANNELS, side, side).unbind()
    text = torch.randn(batch, config.text.minilm.length, TEXT_WIDTH)
    t = torch.randint(0, 1000, (batch,))
    return config, network, lambda module: ((module(x, t, text).sample - noise) ** 2).mean()


def small_autoencoder(
    batch: int,
) -> tuple[Any, torch.nn.Module, Callable[[Any], torch.Tensor]]:
    """With the decoder of the public class, and without Fourier features, which that lacks."""
    config = importlib.import_module("configs.autoencoder").get_config("size=tiny")
    config.train.batch_size = batch
    config.autoencoder.fourier_bands = 0
    config.autoencoder.decoder_widths = config.autoencoder.widths
    config.autoencoder.decoder_blocks = config.autoencoder.blocks + 1
    arguments = {**config.autoencoder, "latent_channels": config.latent_channels}
    scale = np.ones(config.latent_channels, np.float32)
    network = AutoencoderKL(**public(autoencoder.to_config(arguments, 0 * scale, scale, 64)))
    images = torch.randn(batch, 3, 64, 64)

    def loss(module: Any) -> torch.Tensor:
        posterior = module.encode(images).latent_dist
        decoded = module.decode(posterior.sample()).sample
        return (decoded - images).abs().mean() + 1e-6 * posterior.kl().mean()

    return config, network, loss


CASES = {"latent": latent, "autoencoder": small_autoencoder}


def public(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def compare(name: str, config: Any, network: Any, loss: Any, rounds: int, compiled: bool) -> None:
    steps = {"emu_jax": jax_step(config)}
    steps["PyTorch, eager"] = torch_step(network, loss)
    if compiled:
        steps["PyTorch, compiled"] = torch_step(copy.deepcopy(network), loss, compiled=True)
    for step in steps.values():
        for _ in range(2):  # the first one compiles
            step()
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[key].append(time.perf_counter() - start)
    count = sum(p.numel() for p in network.parameters())
    print(f"{name}: {count / 1e6:.2f} M parameters in PyTorch, batch {config.train.batch_size}")
    for key, found in seconds.items():
        low, middle, high = (1e3 * x for x in statistics.quantiles(found, n=4))
        print(f"  {key:<18}{middle:8.0f} ms (quartiles {low:.0f} to {high:.0f})")
    ours, *theirs = seconds.values()
    best = min(theirs, key=statistics.median)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, best, strict=True)], n=4)
    print(f"  ratio to the faster {middle:8.2f} (quartiles {low:.2f} to {high:.2f})", flush=True)


def jax_step(config: Any) -> Callable[[], None]:
    prepare(config)
    mesh = make_mesh(**config.mesh)
    task = make_task(config, placement(mesh, config.attention)).prepare(None)
    unused = unused_networks(config, task)
    frozen = synthetic(abstract_frozen(task, mesh, unused), jax.random.key(0), 0.02)
    state, batch = abstract_state(task, mesh), step_batch(config, task, frozen, mesh)
    made = synthetic(batch, jax.random.key(0))
    held = start_state(task, mesh, *fresh_params(task, 0, mesh))
    step = jit_step(task, state, mesh, seed=0)

    def run() -> None:
        nonlocal held
        held, metrics = step(held, frozen, made)
        jax.block_until_ready((held, metrics))

    return run


def torch_step(network: Any, loss: Any, *, compiled: bool = False) -> Callable[[], None]:
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), foreach=True)
    value = torch.compile(loss) if compiled else loss

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        value(network).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1e-3)

    return run


if __name__ == "__main__":
    main()
