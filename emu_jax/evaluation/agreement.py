"""How far annotators agree beyond chance.

Krippendorff's alpha (2011) from the number of votes c_uv that unit u has of each value v, with
m_u = sum_v c_uv >= 2 votes of unit u (others say nothing of agreement), the coincidences o and
their margins n_v:

    o_vw = sum_u c_uv (c_uw - [v = w]) / (m_u - 1),    n_v = sum_w o_vw,    n = sum_v n_v  (1)
    alpha = 1 - (n - 1) sum_vw o_vw d_vw / sum_vw n_v n_w d_vw                             (2)

with the squared differences d_vw = [v != w] of nominal values, or (v - w)^2 of an interval scale.
Units may have different numbers of votes.

Fleiss' kappa (1971) needs m votes of every one of N units. With p_v the share of value v:

    P = sum_u (sum_v c_uv^2 - m) / (N m (m - 1)),  P_e = sum_v p_v^2,
    kappa = (P - P_e) / (1 - P_e)                                                          (3)

Both are 1 for perfect agreement and 0 for votes at random, and NaN where all votes are equal.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from emu_jax.errors import UserError


def krippendorff_alpha(
    counts: Int[np.ndarray, "u v"], values: Float[np.ndarray, " v"] | None = None
) -> float:
    """(2) of nominal values, or of an interval scale with these ``values``."""
    counts = counts[counts.sum(1) > 1].astype(np.float64)
    each = counts.sum(1)[:, None]
    coincidences = (counts / (each - 1)).T @ counts - np.diag((counts / (each - 1)).sum(0))
    margins = coincidences.sum(1)
    apart = 1 - np.eye(len(margins)) if values is None else np.subtract.outer(values, values) ** 2
    chance = margins @ apart @ margins
    if not chance > 0:
        return math.nan
    return float(1 - (margins.sum() - 1) * np.sum(coincidences * apart) / chance)


def fleiss_kappa(counts: Int[np.ndarray, "u v"]) -> float:
    """(3). UserError where units have different numbers of votes, or fewer than 2."""
    each = counts.sum(1)
    if not len(each) or each.min() != each.max() or each[0] < 2:
        raise UserError("Fleiss' kappa needs the same number of votes for every pair, 2 or more.")
    votes = int(each[0])
    agreed = (np.sum(counts**2) - each.sum()) / (len(counts) * votes * (votes - 1))
    by_chance = float(np.sum((counts.sum(0) / counts.sum()) ** 2))
    return float((agreed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan
