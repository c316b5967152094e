"""GrabCut (Rother, Kolmogorov & Blake 2004): the thing in a box, cut out of a photograph without a
network.

Two mixtures of Gaussians model the colors of the subject and of the background: everything outside
the box is background, and at first everything inside is subject. In turns the mixtures are fitted
and the box is divided by a minimum cut of

    sum_i -log p(color_i | side_i)  +  gamma sum_ij [side_i != side_j] exp(-beta |d_ij|^2) / r_ij

over the pairs of 8-neighbors i, j with the distance r_ij and the color difference d_ij; beta is
1 / (2 mean |d|^2), and gamma 50 as in the paper. The cut is made at no more than 128 pixels along
the longer side, and enlarged smoothly.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_SIDE = 128
_ROUNDS = 4
_COLORS = 5  # Gaussians in each mixture
_GAMMA = 50.0
_UNIT = 1000  # capacities are whole numbers: this many for 1
_FIXED = 1e5  # the energy of a pixel outside the box as subject
_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))


def cut_in_box(image: UInt8[np.ndarray, "h w 3"], box: Sequence[float]) -> Bool[np.ndarray, "h w"]:
    """The mask of the thing in ``box``, (left, top, right, bottom) in pixels; empty if the box has
    no colors of its own.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    shape = (max(2, round(height * scale)), max(2, round(width * scale)))
    small = Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BOX)
    left, top, right, bottom = (edge * scale for edge in box)
    inside = np.zeros(shape, bool)
    rows, columns = (
        slice(round(low), max(round(high), round(low) + 1))
        for low, high in ((top, bottom), (left, right))
    )
    inside[rows, columns] = True
    mask = _cut(np.asarray(small, np.float64), inside)
    soft = Image.fromarray(mask.astype(np.float32))
    large = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)) > 0.5
    return ndimage.binary_fill_holes(large)


def _cut(colors: Float[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]) -> np.ndarray:
    edges = _edges(colors)
    mask = inside
    for _ in range(_ROUNDS):
        if mask.sum() < _COLORS or (~mask).sum() < _COLORS:
            return np.zeros_like(inside)
        subject, background = (_energy(colors, colors[part]) for part in (mask, ~mask))
        subject = np.where(inside, subject, _FIXED)
        found = _minimum_cut(subject, background, edges) & inside
        if (found == mask).all():
            break
        mask = found
    return mask


def _energy(
    colors: Float[np.ndarray, "h w 3"], sample: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "h w"]:
    """-log p of every pixel's color under a mixture that is fitted to a sample."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster may stay empty
        _, label = kmeans2(sample, _COLORS, minit="++", seed=0)
    parts = []
    for i in range(_COLORS):
        own = sample[label == i]
        if len(own) < 2:
            continue
        difference = colors - own.mean(0)
        covariance = np.cov(own.T) + 4 * np.eye(3)  # a flat area has no deviation of its own
        distance = np.einsum("hwi,ij,hwj->hw", difference, np.linalg.inv(covariance), difference)
        share = np.log(len(own) / len(sample)) - 0.5 * np.linalg.slogdet(covariance)[1]
        parts.append(share - 0.5 * distance)
    return -np.logaddexp.reduce(parts, axis=0)


def _edges(colors: Float[np.ndarray, "h w 3"]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(i, j, weight) of the pairs of neighbors in each direction; pixels are numbered by rows."""
    height, width = colors.shape[0], colors.shape[1]
    number = np.arange(height * width).reshape(height, width)
    found = []
    for down, across in _NEIGHBORS:
        here = (slice(0, height - down), slice(max(0, -across), width - max(0, across)))
        there = (slice(down, height), slice(max(0, across), width - max(0, -across)))
        square = ((colors[here] - colors[there]) ** 2).sum(-1)
        found.append((number[here].ravel(), number[there].ravel(), square.ravel(), down, across))
    mean = np.concatenate([square for *_, square, _, _ in found]).mean()
    return [
        (i, j, _GAMMA * np.exp(-square / (2 * mean + 1e-9)) / np.hypot(down, across))
        for i, j, square, down, across in found
    ]


def _minimum_cut(
    subject: Float[np.ndarray, "h w"],
    background: Float[np.ndarray, "h w"],
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Bool[np.ndarray, "h w"]:
    """The pixels on the subject's side, for the energies of both sides and of the edges."""
    count = subject.size
    source, sink = count, count + 1
    least = np.minimum(subject, background)  # what both sides cost changes no cut
    pixels = np.arange(count)
    rows = [np.full(count, source), pixels, *(i for i, _, _ in edges), *(j for _, j, _ in edges)]
    columns = [pixels, np.full(count, sink), *(j for _, j, _ in edges), *(i for i, _, _ in edges)]
    weights = [(background - least).ravel(), (subject - least).ravel()]
    weights += 2 * [weight for _, _, weight in edges]
    capacities = np.rint(_UNIT * np.concatenate(weights)).astype(np.int32)
    where = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_matrix((capacities, where), shape=(count + 2, count + 2)).tocsr()
    flow = maximum_flow(graph, source, sink).flow
    left = graph - flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    mask = np.zeros(count + 2, bool)
    mask[reached] = True
    return mask[:count].reshape(subject.shape)
