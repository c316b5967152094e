"""Low-rank adapters against torch's arithmetic, Eckart and Young's bound, and the base itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.nn.lora import Lora, factor
from emu_jax.nn.stack import SCANNED, unstacked
from emu_jax.nn.torch_layout import to_torch

RNG = np.random.default_rng(0)
SHAPES = {
    "net/dense/kernel": (5, 7),
    "net/dense/bias": (7,),
    "net/conv/kernel": (3, 3, 4, 6),
    f"net/{SCANNED}/dense/kernel": (2, 5, 7),
    "net/table/embedding": (9, 5),
    "other/dense/kernel": (5, 7),
}
BASE = {path: RNG.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
LORA = Lora(rank=2, alpha=6.0, pattern="net/")
TARGETS = [f"net/{SCANNED}/dense/kernel", "net/conv/kernel", "net/dense/kernel"]


def trained(lora=LORA):
    """An adapter of which no factor is zero."""
    drawn = lora.init(jax.random.key(1), BASE)
    return {path: RNG.normal(size=x.shape).astype(np.float32) for path, x in drawn.items()}


def test_kernels_alone_are_adapted_and_a_fresh_adapter_changes_no_bit():
    assert LORA.targets(BASE) == sorted(TARGETS)
    adapter = LORA.init(jax.random.key(0), BASE)
    names = {factor(path, name) for path in TARGETS for name in ("lora_A", "lora_B")}
    assert adapter.keys() == names
    merged = LORA.merged(BASE, adapter)
    assert merged.keys() == BASE.keys()
    for path, value in BASE.items():
        np.testing.assert_array_equal(merged[path], value)
    for path in TARGETS:
        bound = 1 / np.sqrt(36 if "conv" in path else 5)
        drawn = np.abs(adapter[factor(path, "lora_A")])
        assert 0.7 * bound < np.max(drawn) <= bound
        assert not np.any(adapter[factor(path, "lora_B")])


def test_it_is_what_torch_makes_of_the_two_factors():
    """B(A(x)) of torch's own modules beside W(x); the layout is the public one."""
    adapter = trained()
    merged, keys = LORA.merged(BASE, adapter), to_torch(unstacked(adapter))
    assert keys["net.dense.lora_A.weight"].shape == (2, 5)
    assert keys["net.dense.lora_B.weight"].shape == (7, 2)
    assert keys["net.0.dense.lora_A.weight"].shape == (2, 5)
    assert keys["net.conv.lora_A.weight"].shape == (2, 4, 3, 3)
    assert keys["net.conv.lora_B.weight"].shape == (6, 2, 1, 1)
    base, ours = to_torch(unstacked(BASE)), unstacked(merged)

    def torch_sum(module, x, apply, **options):
        w, a, b = (
            torch.tensor(weights[f"net.{module}.{end}"])
            for weights, end in (
                (base, "weight"),
                (keys, "lora_A.weight"),
                (keys, "lora_B.weight"),
            )
        )
        return apply(x, w, **options) + 3.0 * apply(apply(x, a, **options), b)

    x = RNG.normal(size=(3, 5)).astype(np.float32)
    for module in ("dense", "0.dense", "1.dense"):
        theirs = torch_sum(module, torch.tensor(x), torch.nn.functional.linear)
        kernel = ours[f"net/{module.replace('.', '/')}/kernel"]
        np.testing.assert_allclose(x @ kernel, theirs, rtol=1e-5, atol=1e-4)
    x = RNG.normal(size=(1, 8, 8, 4)).astype(np.float32)
    theirs = torch_sum("conv", torch.tensor(x).permute(0, 3, 1, 2), torch.nn.functional.conv2d)
    found = jax.lax.conv_general_dilated(
        x, ours["net/conv/kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, theirs.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    for path in BASE.keys() - set(TARGETS):
        np.testing.assert_array_equal(merged[path], BASE[path])


def test_a_layer_of_a_scanned_stack_is_adapted_as_it_would_be_alone():
    adapter = trained()
    merged = unstacked(LORA.merged(BASE, adapter))
    alone = LORA.merged(unstacked(BASE), unstacked(adapter))
    assert merged.keys() == alone.keys()
    for path, value in alone.items():
        np.testing.assert_allclose(merged[path], value, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_training_comes_as_close_to_a_known_change_as_its_rank_allows(rank):
    """The best is the sum of the singular values' squares beyond ``rank``: none at full rank."""
    delta = RNG.normal(size=(5, 7)).astype(np.float32)
    path = "net/dense/kernel"
    lora, base = Lora(rank, 4.0, path), {path: BASE[path]}
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 2000))

    @jax.jit
    def fit(adapter):
        def error(adapter):
            return jnp.sum((lora.merged(base, adapter)[path] - base[path] - delta) ** 2)

        def update(carry, _):
            adapter, state = carry
            changes, state = adam.update(jax.grad(error)(adapter), state)
            return (optax.apply_updates(adapter, changes), state), None

        (adapter, _), _ = jax.lax.scan(update, (adapter, adam.init(adapter)), length=2000)
        return error(adapter)

    best = np.sum(np.linalg.svd(delta, compute_uv=False)[rank:] ** 2)
    np.testing.assert_allclose(fit(lora.init(jax.random.key(2), base)), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", ["net/nothing", "net/.*bias", "dense"])
def test_a_pattern_that_finds_no_kernel_is_refused(pattern):
    with pytest.raises(UserError, match="matches no kernel of this model"):
        Lora(2, 2.0, pattern).targets(BASE)


def test_a_rank_below_one_is_refused():
    with pytest.raises(UserError, match=r"lora\.rank is -1; use 1 or more"):
        Lora(-1, 2.0, "net/")
