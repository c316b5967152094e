"""The TPU kernels against torch's attention: values and gradients.

They run in Pallas' simulation of a TPU, where memory that nobody has written is not a number.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.experimental.pallas import tpu as pltpu

from emu_jax.parallel import flash as kernels
from emu_jax.parallel.flash import flash
from emu_jax.planning.chips import open_topology


def draw(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape).astype(np.float32)


def compare(q, k, v, weight, keys, tolerance, dtype=jnp.float32):
    """Ours and torch's results and gradients of a weighted sum of them."""

    def loss(*given):
        given = (x.astype(dtype) for x in given)
        out = flash(*given, keys, interpret=pltpu.InterpretParams()).astype(jnp.float32)
        return jnp.sum(out * weight), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    theirs = [torch.tensor(np.array(x), requires_grad=True) for x in (q, k, v)]
    mask = None if keys is None else torch.tensor(keys)[:, None, None]
    heads = (x.transpose(1, 2) for x in theirs)
    expected = F.scaled_dot_product_attention(*heads, mask).transpose(1, 2)
    (expected * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(out, expected.detach(), atol=tolerance)
    for ours, x in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(ours, x.grad, atol=tolerance)


@pytest.mark.parametrize(
    ("n", "m", "heads", "width", "masked"),
    [
        (200, 300, 2, 40, True),  # three tiles of keys; a width that no unit has; padded both ways
        (300, 256, 3, 64, False),  # half of the last group's lanes are no head
        (128, 77, 5, 8, False),  # a text; four heads in a group, one in the next
        (640, 1100, 1, 128, True),  # several tiles of both, a head of a unit's own width
        (128, 128, 1, 160, False),  # a head of two units
    ],
)
def test_it_is_torchs_attention_and_so_are_its_gradients(n, m, heads, width, masked):
    q, k, v, weight = (draw(2, tokens, heads, width) for tokens in (n, m, m, n))
    keys = (np.arange(m) % 3 > 0) & (np.arange(m) < np.array([[m], [m // 2]])) if masked else None
    compare(q, k, v, weight, keys, 1e-5)


def test_queries_too_many_for_a_cores_memory_go_back_in_parts(monkeypatch):
    monkeypatch.setattr(kernels, "_MOST", 256 * 128 * 4)  # 256 of 640 at a time
    compare(*(draw(1, tokens, 2, 64) for tokens in (640, 200, 200, 640)), None, 1e-5)


def test_large_logits_neither_overflow_nor_vanish():
    """A first tile of keys far below the second: what was summed before must shrink to nothing."""
    q, k, v, weight = (draw(1, 1024, 1, 64) for _ in range(4))
    k[:, :512] *= 0.1
    compare(20 * q, 3 * k, v, weight, None, 1e-3)


def test_16_bits_are_summed_in_32():
    given = (draw(1, 1024, 2, 64) for _ in range(4))
    exact = (np.array(jnp.asarray(x, jnp.bfloat16), np.float32) for x in given)
    compare(*exact, None, 2e-2, jnp.bfloat16)


@pytest.mark.parametrize(
    ("n", "heads", "width", "dtype"),
    [(4096, 2, 64, "bfloat16"), (1500, 2, 160, "float32"), (4096, 1, 512, "float32")],
)
def test_the_smallest_core_has_room_for_both(n, heads, width, dtype):
    """By the TPU compiler, which refuses a kernel over a v4's 16 MiB."""
    pytest.importorskip("libtpu")  # the compiler: Linux on x86 only
    device = open_topology("v4:2x2x1").devices[0]
    x = jax.ShapeDtypeStruct(
        (1, n, heads, width), dtype, sharding=jax.sharding.SingleDeviceSharding(device)
    )

    def both(q, k, v, weight):
        return jax.vjp(lambda *given: flash(*given, None), q, k, v)[1](weight)

    assert jax.jit(both).lower(x, x, x, x).compile().as_text().count("tpu_custom_call") >= 2
