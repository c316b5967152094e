"""Similarity of images and their reconstructions by an autoencoder.

With images in [0, 1] and the mean square error over a whole image,

    PSNR = -10 log10 mse   (dB)                                                            (1)

SSIM (Wang et al. 2004) compares windows with Gaussian weights of standard deviation 1.5 pixels, cut
at 3.5 deviations (11 x 11), c1 = 0.01^2 and c2 = 0.03^2, for each color channel,

    ssim = (2 m_x m_y + c1)(2 cov_xy + c2) / ((m_x^2 + m_y^2 + c1)(var_x + var_y + c2))    (2)

and is the mean of (2) over the windows inside the image.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from emu_jax.errors import UserError

_DEVIATION, _RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(
    a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, " n"]:
    """(1) of each pair; equal images have 100 dB."""
    x, y = _pair(a, b)
    mse = np.mean((x - y) ** 2, axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(mse, 1e-10))


def ssim(
    a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, " n"]:
    """The mean of (2) of each pair; 1 for equal images."""
    x, y = _pair(a, b)
    if min(x.shape[1:3]) <= 2 * _RADIUS:
        raise UserError(
            f"SSIM needs at least 11 x 11 pixels; the images have {x.shape[1]} x {x.shape[2]}."
        )
    mx, my = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mx * mx, _window(y * y) - my * my
    cov = _window(x * y) - mx * my
    similarity = (2 * mx * my + _C1) * (2 * cov + _C2)
    similarity /= (mx * mx + my * my + _C1) * (var_x + var_y + _C2)
    return similarity.mean(axis=(1, 2, 3))


def _window(x: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h-10 w-10 3"]:
    """Weighted means of the windows inside the image."""
    blurred = gaussian_filter(x, (0, _DEVIATION, _DEVIATION, 0), radius=(0, _RADIUS, _RADIUS, 0))
    return blurred[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 4 or a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UserError(
            f"A comparison needs two uint8 arrays [n, h, w, 3] of one shape, not {a.dtype} "
            f"{list(a.shape)} and {b.dtype} {list(b.shape)}."
        )
    return a / 255.0, b / 255.0
