"""SOLO's shapes, at the published size and at a small one, and its pyramid in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.nn.functional import Network
from emu_jax.nn.resnet50 import ResNet
from emu_jax.nn.solo import Pyramid, SmallBackbone, Solo

SMALL = Network(
    lambda rngs: Solo(
        SmallBackbone((8, 16, 24), groups=4, rngs=rngs),
        (16, 24),
        classes=5,
        grids=(8,),
        width=16,
        depth=2,
        groups=4,
        rngs=rngs,
    )
)


def test_published_levels():
    network = Network(
        lambda rngs: Solo(ResNet(rngs=rngs), (256, 512, 1024, 2048), rngs=rngs),
    )
    image = jax.ShapeDtypeStruct((1, 256, 320, 3), jnp.float32)
    levels = jax.eval_shape(network, network.shapes(), image)
    assert [level.classes.shape[1:] for level in levels] == [
        (s, s, 80) for s in (40, 36, 24, 16, 12)
    ]
    strides = (8, 8, 16, 32, 32)  # of the features; masks are twice as large
    assert [level.masks.shape[1:3] for level in levels] == [
        (2 * 256 // stride, 2 * 320 // stride) for stride in strides
    ]
    # Published weights: backbone 23.5 M, pyramid 3.3 M, heads 9.2 M.
    assert 35e6 < sum(x.size for x in network.shapes().values()) < 37e6


def test_small_levels_and_rare_classes():
    params = SMALL.init(jax.random.key(0))
    (level,) = SMALL(params, jnp.zeros((2, 64, 64, 3)))
    assert level.classes.shape == (2, 8, 8, 5) and level.masks.shape == (2, 32, 32, 64)
    np.testing.assert_allclose(jax.nn.sigmoid(level.classes), 0.01, atol=0.005)


def test_the_mask_branch_reads_its_position():
    """A first layer that reads the two coordinates only: masks vary in space only."""
    params = SMALL.init(jax.random.key(1))
    name = "mask_branch/convs/0/kernel"
    params = params | {name: params[name].at[:, :, :-2].set(0)}
    images = jax.random.normal(jax.random.key(2), (2, 64, 64, 3))
    masks = SMALL(params, images)[0].masks
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-5)
    assert np.ptp(masks[0].mean((0, 2))) > 1e-4 and np.ptp(masks[0].mean((1, 2))) > 1e-4


def test_the_pyramid_adds_coarser_maps_to_finer_ones():
    network = Network(lambda rngs: Pyramid((1, 1), 1, 3, rngs=rngs))
    params = {name: jnp.zeros(x.shape) for name, x in network.shapes().items()}
    for i in range(2):
        params[f"lateral_convs/{i}/kernel"] += 1
        params[f"fpn_convs/{i}/kernel"] = params[f"fpn_convs/{i}/kernel"].at[1, 1].set(1)
    fine = jnp.arange(15.0).reshape(1, 3, 5, 1)
    coarse = 100 * jnp.arange(1.0, 7).reshape(1, 2, 3, 1)
    first, second, third = network(params, [fine, coarse])
    expected = fine + jnp.repeat(jnp.repeat(coarse, 2, 1), 2, 2)[:, :3, :5]
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, coarse)
    np.testing.assert_array_equal(third[0, :, :, 0], [[100, 300]])
