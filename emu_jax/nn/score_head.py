"""The head of the LAION aesthetic predictor and of ImageReward: five dense layers in a row.

There are no activations between them, so the head is one affine map. The indices are those of the
published files, whose sequence has dropouts between the layers.
"""

from flax import nnx
from jaxtyping import Array, Float

from emu_jax.nn.layers import linear

_WIDTHS = {"0": 1024, "2": 128, "4": 64, "6": 16, "7": 1}


class ScoreHead(nnx.Module):
    def __init__(self, width: int = 768, *, rngs: nnx.Rngs):
        layers = {}
        for index, outputs in _WIDTHS.items():
            layers[index] = linear(width, outputs, rngs=rngs)
            width = outputs
        self.layers = nnx.Dict(layers)

    def __call__(self, x: Float[Array, "b width"]) -> Float[Array, " b"]:
        for index in _WIDTHS:
            x = self.layers[index](x)
        return x[:, 0]
