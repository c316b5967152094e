"""Stacks of layers: scanned equals unrolled, rematerialised equals kept, and what each keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.nn.functional import Network
from emu_jax.nn.stack import POLICIES, SCANNED, relaid, remat_policy, unstacked
from emu_jax.nn.transformer import SpatialTransformer
from emu_jax.nn.unet import UNet
from emu_jax.planning.flops import count_flops, gradient_flops

B, SIDE, C, TOKENS, TEXT, DEPTH = 2, 4, 16, 5, 12, 2


def stack(**options):
    build = partial(SpatialTransformer, C, 2, 8, DEPTH, context_width=TEXT, groups=4, **options)
    return Network(lambda rngs: build(rngs=rngs))


PLAIN, SCAN = stack(), stack(scan=True)
RNG = np.random.default_rng(0)
PARAMS = {
    path: RNG.normal(size=x.shape, scale=0.3).astype(np.float32)
    for path, x in PLAIN.shapes().items()
}
INPUTS = (
    RNG.normal(size=(B, SIDE, SIDE, C)).astype(np.float32),
    RNG.normal(size=(B, TOKENS, TEXT)).astype(np.float32),
    np.array([[1] * TOKENS, [1, 1, 0, 0, 0]], bool),
)


def loss(network, params, inputs):
    return jnp.mean(jnp.sin(network(params, *inputs)))


def gradients(network, params):
    """Of the parameters and of picture and text, which all layers share."""

    def of(params, picture, text):
        return loss(network, params, (picture, text, INPUTS[2]))

    return jax.jit(jax.value_and_grad(of, (0, 1, 2)))(params, *INPUTS[:2])


@pytest.fixture(scope="module")
def expected():
    return gradients(PLAIN, PARAMS)


@pytest.mark.parametrize(
    ("scan", "remat"), [(True, "none"), (True, "block"), (True, "dots"), (False, "block")]
)
def test_scanned_and_rematerialised_it_is_the_same_function(scan, remat, expected):
    network = stack(scan=scan, remat=remat)
    value, (params, *inputs) = gradients(network, relaid(PARAMS, network.shapes()))
    params = unstacked(params)
    np.testing.assert_allclose(value, expected[0], atol=1e-6)
    assert params.keys() == expected[1][0].keys()
    for path, gradient in expected[1][0].items():
        np.testing.assert_allclose(params[path], gradient, atol=1e-6, err_msg=path)
    for ours, theirs in zip(inputs, expected[1][1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_scanned_stack_starts_as_its_layers_would():
    key = jax.random.key(3)
    for path, value in unstacked(SCAN.init(key)).items():
        np.testing.assert_array_equal(value, PLAIN.init(key)[path], path)


def test_paths_of_a_stack_say_so_and_lead_back():
    shapes = SCAN.shapes()
    kernel = f"transformer_blocks/{SCANNED}/attn1/to_q/kernel"
    assert shapes[kernel].shape == (DEPTH, C, C)
    stacked = relaid(PARAMS, shapes)
    assert {path: x.shape for path, x in stacked.items()} == {p: x.shape for p, x in shapes.items()}
    np.testing.assert_array_equal(
        stacked[kernel][1], PARAMS["transformer_blocks/1/attn1/to_q/kernel"]
    )
    back = relaid(stacked, PLAIN.shapes())
    assert back.keys() == PARAMS.keys()
    assert all(np.array_equal(back[path], PARAMS[path]) for path in PARAMS)
    assert relaid(PARAMS, PLAIN.shapes()) == PARAMS


def test_a_stack_of_another_height_is_not_cut_to_fit():
    lower = Network(
        lambda rngs: SpatialTransformer(
            C, 2, 8, DEPTH - 1, context_width=TEXT, groups=4, scan=True, rngs=rngs
        )
    )
    assert not any(SCANNED in path for path in relaid(PARAMS, lower.shapes()))
    assert relaid(PARAMS, lower.shapes()).keys() == PARAMS.keys()


def test_the_first_layer_s_attention_is_the_same_in_every_layout():
    """1 on average, and that of the weights of the first layer."""
    found = [
        network(params, INPUTS[0], method="received")
        for network, params in ((PLAIN, PARAMS), (SCAN, relaid(PARAMS, SCAN.shapes())))
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[0].mean((1, 2)), 1, atol=1e-5)
    assert np.std(found[0]) > 0.01


@pytest.mark.parametrize("scan", [False, True])
def test_what_a_policy_computes_anew(scan):
    """In FLOPs: of "dots" attention's two products in both attentions; of "block" all of a layer
    but its last product, whose result nobody asks for."""
    b, n, m, c = B, SIDE * SIDE, TOKENS, C
    attention = 2 * 2 * b * n * (n + m) * c
    dense = 2 * b * (n * 6 * c * c + m * 2 * TEXT * c + n * 8 * c * c)
    again = {"none": 0, "dots": DEPTH * attention, "block": DEPTH * (attention + dense)}
    found = {}
    for remat in POLICIES:
        network = stack(scan=scan, remat=remat)
        of = partial(loss, network)
        args = (network.shapes(), INPUTS)
        found[remat] = count_flops(jax.grad(of), *args)
        assert gradient_flops(of, *args) == found["none"]
    assert {remat: flops - found["none"] for remat, flops in found.items()} == again


def test_residual_blocks_are_rematerialised_too():
    build = dict(in_channels=4, out_channels=4, widths=(8,), blocks=1, groups=4)
    build |= dict(transformer_depth=0, mid_depth=0, heads=1)
    x, t = np.ones((1, 4, 4, 4), np.float32), np.ones(1, np.float32)
    flops, values = [], []
    for remat in ("none", "block"):
        network = Network(lambda rngs, remat=remat: UNet(**build, remat=remat, rngs=rngs))
        params = {p: jnp.full(s.shape, 0.1) for p, s in network.shapes().items()}
        grad = jax.grad(lambda params, network=network: jnp.sum(network(params, x, t)))
        flops.append(count_flops(grad, params))
        values.append(jax.jit(grad)(params))
    # Anew: the first convolution and the time's projection, of three blocks of 8 channels and two
    # of 16 (a skip's and its own). 10 taps of 12 fall on the map along an axis.
    assert flops[1] - flops[0] == 2 * 10**2 * (3 * 8 * 8 + 2 * 16 * 8) + 5 * 2 * 32 * 8
    for path, value in values[0].items():
        np.testing.assert_allclose(values[1][path], value, rtol=1e-4, atol=1e-4, err_msg=path)


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"'full'; choose one of none, block, dots"):
        remat_policy("full")


def test_stored_configs_may_say_the_policy_as_a_bool():
    assert (remat_policy(True), remat_policy(False)) == ("block", "none")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", list(POLICIES))
def test_the_backward_pass_gathers_weights_again_unless_all_is_kept(remat, scan, expected):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    one = jax.custom_vjp(lambda x: jax.lax.with_sharding_constraint(x, here))
    one.defvjp(lambda x: (jax.lax.with_sharding_constraint(x, here), None), lambda _, dx: (dx,))
    network = stack(scan=scan, remat=remat, gather=lambda tree: jax.tree.map(one, tree))
    params = relaid(PARAMS, network.shapes())
    layers = [path for path in params if "transformer_blocks/" in path]
    program = str(jax.make_jaxpr(jax.grad(partial(loss, network)))(params, INPUTS))
    gathers = program.count("sharding_constraint[")
    # A bias is not asked for again.
    kernels = [path for path in layers if path.endswith("kernel")]
    assert gathers == len(layers) if remat == "none" else gathers >= len(layers) + len(kernels)
    for path, gradient in unstacked(gradients(network, params)[1][0]).items():
        np.testing.assert_allclose(gradient, expected[1][0][path], atol=1e-6, err_msg=path)
