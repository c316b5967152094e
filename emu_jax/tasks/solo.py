"""What SOLO learns, and what its output says: targets, loss and decoding of :mod:`emu_jax.nn.solo`.

The ground truth of an image is a map of instance numbers (0 is the background) and the class of
each instance. An instance belongs to the levels whose range contains the root of its box's area. At
a level it fills a box of cells around its center of mass c, of ``SHARE`` times its own extent, and
at most one cell to each side of the cell of c (3 x 3). Where two instances claim a cell the later
one has it. A cell's mask target is the whole mask of its instance. With K cells filled in the batch

    L = FL(classes) / (K + 1) + 3 mean over filled cells of Dice(masks)                    (1)
    FL(p) = -a_t (1 - p_t)^2 log p_t, summed over cells and classes, a = 1/4               (2)
    Dice(p, q) = 1 - 2 sum pq / (sum p^2 + sum q^2 + 0.002)                                (3)

with p_t = p and a_t = a for the right class of a cell, 1 - p and 1 - a for all others.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from emu_jax.nn.solo import Level

# Published ranges of the root of a box's area in pixels, from the finest level to the coarsest.
RANGES = ((1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, 2048.0))
SHARE = 0.2
_SMOOTH = 0.002
_SIGMA = 2.0  # of matrix NMS
_CANDIDATES = 500  # cells and classes that matrix NMS compares, as published


class Instances(NamedTuple):
    """The ground truth of a batch: ``classes[:, i - 1]`` is the class of instance i, -1: none."""

    map: UInt8[Array, "b h w"]
    classes: Int[Array, "b n"]


def assign(truth: Instances, grid: int, span: tuple[float, float]) -> Int[Array, "b s s"]:
    """The number less one of the instance of each of ``grid`` x ``grid`` cells, or -1; ``span`` is
    the level's range.
    """
    _, h, w = truth.map.shape
    n = truth.classes.shape[1]
    masks = truth.map[:, None] == jnp.arange(1, n + 1, dtype=jnp.uint8)[:, None, None]
    rows, top, bottom = _extent(masks.any(3), masks.sum(3), h)
    columns, left, right = _extent(masks.any(2), masks.sum(2), w)
    box_h, box_w = bottom - top, right - left
    size = jnp.sqrt(box_h * box_w)
    there = (truth.classes >= 0) & (size >= span[0]) & (size <= span[1])

    def cells(center, extent, length):
        """[b, n, grid]: whether a row (or column) of cells is within reach of the center."""
        own, first, last = (
            jnp.clip(jnp.floor(at * grid / length), 0, grid - 1)
            for at in (center, center - SHARE * extent / 2, center + SHARE * extent / 2)
        )
        i = jnp.arange(grid)
        low, high = jnp.maximum(first, own - 1), jnp.minimum(last, own + 1)
        return (i >= low[..., None]) & (i <= high[..., None])

    across = cells(columns, box_w, w)[:, :, None, :]
    filled = cells(rows, box_h, h)[..., None] & across & there[..., None, None]
    numbers = jnp.arange(n)[:, None, None]
    return jnp.max(jnp.where(filled, numbers, -1), axis=1)


def _extent(occupied, weight, length: int):
    """(center of mass, first, last) along one axis, in pixels; ``occupied`` and ``weight`` are of
    rows or columns of each instance, [b, n, length].
    """
    at = jnp.arange(length, dtype=jnp.float32)
    total = jnp.maximum(weight.sum(-1), 1)
    center = (weight * at).sum(-1) / total
    first = jnp.min(jnp.where(occupied, at, length), axis=-1)
    last = jnp.max(jnp.where(occupied, at, -1), axis=-1)
    return center, first, jnp.maximum(last, first)


class Losses(NamedTuple):
    """The terms of (1), each before its weight."""

    classes: Float[Array, ""]
    masks: Float[Array, ""]


def losses(
    levels: Sequence[Level],
    truth: Instances,
    ranges: Sequence[tuple[float, float]] = RANGES,
) -> Losses:
    """The terms of (1) for the output of a network; its gradient is what perceptual feedback is."""
    focal = dice = filled = jnp.zeros(())
    for level, span in zip(levels, ranges, strict=True):
        grid, width = level.classes.shape[1], level.classes.shape[-1]
        cells = assign(truth, grid, span).reshape(len(truth.map), -1)
        positive = cells >= 0
        chosen = jnp.maximum(cells, 0)
        label = jnp.take_along_axis(truth.classes, chosen, axis=1)
        one_hot = jax.nn.one_hot(jnp.where(positive, label, -1), width)
        focal += _focal(level.classes.reshape(*cells.shape, width), one_hot)
        predicted = jax.nn.sigmoid(level.masks.astype(jnp.float32))
        rows, columns = predicted.shape[1:3]
        target = _masks(truth, (rows, columns))
        overlap = jnp.einsum("bijk,bnij->bkn", predicted, target)
        overlap = jnp.take_along_axis(overlap, chosen[..., None], axis=2)[..., 0]
        area = jnp.take_along_axis(jnp.sum(target**2, (2, 3)), chosen, axis=1)
        total = jnp.sum(predicted**2, (1, 2)) + area + _SMOOTH
        dice += jnp.sum(jnp.where(positive, 1 - 2 * overlap / total, 0.0))
        filled += jnp.sum(positive)
    return Losses(focal / (filled + 1), dice / jnp.maximum(filled, 1))


def total(found: Losses) -> Float[Array, ""]:
    """Equation (1)."""
    return found.classes + 3 * found.masks


def _focal(logits: Float[Array, "b k c"], label: Float[Array, "b k c"]) -> Float[Array, ""]:
    """Equation (2)."""
    logits = logits.astype(jnp.float32)
    p = jax.nn.sigmoid(logits)
    log_right = jax.nn.log_sigmoid(jnp.where(label > 0, logits, -logits))
    wrong = jnp.where(label > 0, 1 - p, p)
    return -jnp.sum(jnp.where(label > 0, 0.25, 0.75) * wrong**2 * log_right)


def _masks(truth: Instances, size: tuple[int, int]) -> Float[Array, "b n i j"]:
    """The instances' masks in another size: pixels that an instance covers by half or more."""
    n = truth.classes.shape[1]
    masks = truth.map[:, None] == jnp.arange(1, n + 1, dtype=jnp.uint8)[:, None, None]
    shape = (*masks.shape[:2], *size)
    return (jax.image.resize(masks.astype(jnp.float32), shape, "linear") >= 0.5).astype(jnp.float32)


class Found(NamedTuple):
    """The instances in an image, best first; those beyond the last have score 0."""

    score: Float[Array, "b k"]
    label: Int[Array, "b k"]
    mask: Float[Array, "b k i j"]


def decode(
    levels: Sequence[Level],
    most: int = 100,
    threshold: float = 0.1,
    keep: float = 0.05,
    agnostic: bool = False,
) -> Found:
    """At most ``most`` instances: cells above ``threshold``, after matrix NMS above ``keep``.

    An instance is suppressed by better ones of its class that it overlaps; if ``agnostic``, by
    those of any class. Masks are those of the finest level's size; 1 is inside.
    """
    finest = levels[0].masks.shape[1:3]
    scores, masks = [], []
    for level in levels:
        b, _, _, c = level.classes.shape
        scores.append(jax.nn.sigmoid(level.classes.astype(jnp.float32)).reshape(b, -1, c))
        soft = jax.nn.sigmoid(level.masks.astype(jnp.float32))
        soft = jax.image.resize(soft, (b, *finest, soft.shape[-1]), "linear")
        masks.append(jnp.moveaxis(soft, -1, 1))
    every, soft = jnp.concatenate(scores, axis=1), jnp.concatenate(masks, axis=1)
    one = partial(_decode_one, most=most, threshold=threshold, keep=keep, agnostic=agnostic)
    return jax.vmap(one)(every, soft)


def _decode_one(
    scores: Float[Array, "k c"],
    soft: Float[Array, "k i j"],
    *,
    most: int,
    threshold: float,
    keep: float,
    agnostic: bool,
) -> Found:
    cells, classes = scores.shape
    candidates = min(_CANDIDATES, cells * classes)
    flat = jnp.where(scores > threshold, scores, 0.0).reshape(-1)
    score, index = jax.lax.top_k(flat, candidates)
    label, chosen = index % classes, soft[index // classes]
    hard = (chosen > 0.5).astype(jnp.float32)
    area = hard.sum((1, 2))
    score = score * (hard * chosen).sum((1, 2)) / jnp.maximum(area, 1)  # and its mask is certain
    score, order = jax.lax.top_k(score, candidates)
    label, hard, area = label[order], hard[order], area[order]

    # Matrix NMS: each instance decays by its overlap with better ones, less what those themselves
    # have decayed by.
    inter = jnp.einsum("aij,bij->ab", hard, hard)
    iou = inter / jnp.maximum(area[:, None] + area[None] - inter, 1)
    better = jnp.triu(jnp.ones((candidates, candidates)), 1)
    if not agnostic:
        better *= label[:, None] == label[None]
    iou = iou * better
    covered = iou.max(0)
    decay = jnp.exp(-_SIGMA * iou**2) / jnp.exp(-_SIGMA * covered[:, None] ** 2)
    score = score * jnp.min(jnp.where(better > 0, decay, 1.0), axis=0)
    score = jnp.where((score > keep) & (area > 0), score, 0.0)
    score, order = jax.lax.top_k(score, min(most, candidates))
    return Found(score, label[order], hard[order])
