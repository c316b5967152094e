"""Banks of random filters that no training has changed: the control for VGG-16's features.

One bank of convolutions of each size, with a relu, side by side: the correlations of their outputs
describe textures, too (Ustyuzhaninov et al. 2017, arXiv:1606.00021), so what VGG-16 does better,
its training on photographs has done. There are five maps, as VGG-16 has.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

SIDES = (3, 7, 11, 15, 19)
_WIDTH = 64  # filters of a bank


class RandomFilters(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.banks = nnx.List(
            nnx.Conv(
                3,
                _WIDTH,
                (side, side),
                kernel_init=nnx.initializers.lecun_normal(),
                bias_init=nnx.initializers.zeros,
                rngs=rngs,
            )
            for side in SIDES
        )

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b h w c"]]:
        """Maps at the size of images in [-1, 1]."""
        return [jax.nn.relu(bank(x)) for bank in self.banks]
