"""A TPU's form of convolutions against XLA's plain one, where each is taken, and its traffic."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from emu_jax.nn.functional import Network
from emu_jax.nn.layers import conv
from emu_jax.nn.unet import UNet
from emu_jax.parallel.convolution import by_columns, convolve_by, make_convolve
from emu_jax.parallel.mesh import make_mesh
from emu_jax.parallel.sharding import abstract_params, batch_sharding, constrain, gather
from emu_jax.planning.chips import open_topology
from emu_jax.planning.hlo import read_program
from emu_jax.planning.traffic import traffic

PRODUCTS = ("conv_general_dilated", "dot_general")


def plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((2, 5, 6), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((1, 8, 6), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 7, 8), (3, 3), (2, 2), ((0, 1), (0, 1))),
        ((3, 4, 9), (2, 4), (1, 3), ((1, 0), (0, 2))),
    ],
)
def test_by_columns_is_the_convolution(size, kernel, strides, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*size, 4)).astype("f")
    weights = rng.normal(size=(*kernel, 4, 3)).astype("f")
    y, back = jax.vjp(lambda *to: plain(*to, strides, padding), x, weights)
    got, got_back = jax.vjp(lambda *to: by_columns(*to, strides, padding), x, weights)
    dy = rng.normal(size=y.shape).astype("f")
    for one, other in zip((got, *got_back(dy)), (y, *back(dy)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_convolution_takes_a_tpus_form_where_it_has_few_rows():
    pytest.importorskip("libtpu")  # the compiler: Linux on x86 only
    mesh = make_mesh(fsdp=4, devices=open_topology("v5p:2x2x1").devices)

    def computed(layer, rows):
        """The operation, and how many axes it knows of maps."""
        layer = convolve_by(make_convolve(mesh), layer)
        x = jax.ShapeDtypeStruct((rows, 6, 6, 8), "float32")
        operations = jax.make_jaxpr(layer)(x).eqns
        (product,) = (one for one in operations if one.primitive.name in PRODUCTS)
        return product.primitive.name, product.invars[0].aval.ndim

    def made(*sizes, **options):
        return conv(8, 8, *sizes, **options, rngs=nnx.Rngs(0))

    as_is, columns, product = zip(PRODUCTS[:1] * 2 + PRODUCTS[1:], (4, 5, 4), strict=True)
    assert [computed(made(), rows) for rows in (4, 12, 16, 6)] == [columns, columns, as_is, as_is]
    assert computed(made(stride=2), 4) == columns
    assert computed(made(groups=2), 4) == as_is
    dilated = nnx.Conv(8, 8, (3, 3), kernel_dilation=2, rngs=nnx.Rngs(0))
    assert computed(dilated, 4) == as_is
    assert computed(made(1), 4) == product and computed(made(1), 16) == as_is
    assert computed(made(1, stride=2), 4) == computed(made(1, padding=(0, 1)), 4) == as_is
    x = np.random.default_rng(1).normal(size=(4, 6, 6, 8)).astype("f")
    np.testing.assert_allclose(
        convolve_by(make_convolve(mesh), made(1))(x), made(1)(x), rtol=1e-5, atol=1e-5
    )
    assert make_convolve(make_mesh()) is jax.lax.conv_general_dilated


def test_a_u_net_of_one_picture_a_chip_sends_weights_and_their_gradients_alone():
    pytest.importorskip("libtpu")
    mesh = make_mesh(fsdp=4, devices=open_topology("v5p:2x2x1").devices)
    network = Network(
        lambda rngs: convolve_by(
            make_convolve(mesh),
            UNet(
                in_channels=16,
                out_channels=16,
                widths=(256, 512),
                blocks=1,
                transformer_depth=0,
                mid_depth=0,
                heads=1,
                constrain=constrain(mesh),
                gather=gather(mesh),
                rngs=rngs,
            ),
        )
    )
    params = abstract_params(network.shapes(), mesh)
    x, t = (
        jax.ShapeDtypeStruct(shape, "float32", sharding=batch_sharding(mesh))
        for shape in ((4, 16, 16, 16), (4,))
    )

    def step(params, x, t):
        return jax.grad(lambda params: (network(params, x, t) ** 2).mean())(params)

    shardings = jax.tree.map(lambda array: array.sharding, params)
    program = jax.jit(step, out_shardings=shardings).lower(params, x, t).compile().as_text()
    # Maps lie picture by picture, none is sent; kernels are gathered, their gradients scattered.
    assert "f32[1,16,3,16,256]" in program and not re.search(r"f32\[4,(16|8),", program)
    sent = {one.kind: one.bytes for one in traffic(read_program(program))}
    kernels = sum(4 * np.prod(one.shape) for one in params.values() if len(one.shape) > 1)
    assert sent.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    assert sent["all-gather"] < 1.1 * kernels and sent["all-reduce"] < kernels / 100
    assert sent["reduce-scatter"] > 0.9 * kernels / 4
