"""Counted FLOPs against closed forms, and against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from emu_jax.nn.functional import Network
from emu_jax.nn.unet import UNet
from emu_jax.planning.flops import count_flops, gradient_flops


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, w, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


def test_a_matrix_product():
    flops = count_flops(jnp.matmul, array(3, 5, 7), array(3, 7, 11))
    assert flops == 2 * 3 * 5 * 7 * 11


def test_a_convolution_without_padding():
    options = dict(window_strides=(2, 2), padding="VALID")
    flops = count_flops(lambda x, w: conv(x, w, **options), array(2, 9, 9, 6), array(3, 3, 6, 10))
    assert flops == 2 * (2 * 4 * 4 * 10) * (3 * 3 * 6)


def test_taps_on_padding_are_no_work():
    options = dict(window_strides=(1, 1), padding="SAME")
    flops = count_flops(lambda x, w: conv(x, w, **options), array(1, 8, 8, 1), array(3, 3, 1, 1))
    assert flops == 2 * (3 * 8 - 2) ** 2


def test_groups_of_features_see_only_their_own():
    options = dict(window_strides=(1, 1), padding="VALID", feature_group_count=4)
    flops = count_flops(lambda x, w: conv(x, w, **options), array(1, 5, 5, 8), array(1, 1, 2, 12))
    assert flops == 2 * (5 * 5 * 12) * 2


def test_a_loop_counts_as_often_as_it_turns():
    def loop(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert count_flops(loop, array(4, 8), array(6, 8, 8)) == 6 * 2 * 4 * 8 * 8


def test_of_a_conditional_the_dearest_branch():
    def either(p, x, w):
        return jax.lax.cond(p, lambda: x @ w @ w, lambda: x @ w)

    args = (jax.ShapeDtypeStruct((), bool), array(4, 8), array(8, 8))
    assert count_flops(either, *args) == 2 * (2 * 4 * 8 * 8)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_computed_again_is_not_counted_again(scanned):
    """Per layer: forward, towards the input and towards the weights; the frozen matrix forward."""

    def loss(hold, w, frozen, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        x = x @ frozen
        if scanned:
            x, _ = jax.lax.scan(hold(layer), x, w)
        else:
            for one in w:
                x, _ = hold(layer)(x, one)
        return jnp.sum(x)

    args = (array(3, 8, 8), array(8, 8), array(4, 8))
    product = 2 * 4 * 8 * 8
    # Nothing needs the first layer's gradient towards the input but a scan, which is uniform.
    expected = product * (1 + 3 * 3 - (0 if scanned else 1))
    for hold in (lambda f: f, jax.checkpoint, lambda f: jax.checkpoint(jax.checkpoint(f))):
        assert gradient_flops(lambda *a, hold=hold: loss(hold, *a), *args) == expected
    again = jax.value_and_grad(lambda *a: loss(jax.checkpoint, *a))
    assert count_flops(again, *args) > expected  # there was something to leave out


def test_a_unet_as_xla_counts_it():
    build = dict(in_channels=4, out_channels=4, widths=(128, 256), blocks=1, head_width=32)
    network = Network(lambda rngs: UNet(**build, context_width=96, vector_width=64, rngs=rngs))
    b = 4
    inputs = (array(b, 16, 16, 4), array(b), array(b, 8, 96), jax.ShapeDtypeStruct((b, 8), bool))

    def loss(params, x, t, context, mask, vector):
        return jnp.mean(network(params, x, t, context, mask, vector) ** 2)

    args = (network.shapes(), *inputs, array(b, 64))
    xla = jax.jit(jax.value_and_grad(loss)).lower(*args).cost_analysis()
    assert gradient_flops(loss, *args) == pytest.approx(xla["flops"], rel=0.03)
