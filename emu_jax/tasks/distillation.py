"""The distillation losses of the SUR-adapter (Zhong et al. 2023, arXiv:2305.05189).

With p(x) = softmax(x) over features,

    KL(u || v) = sum_features p(u) (log p(u) - log p(v))                                    (1)

    L_LLM = KL(s || W_0 f + b_0)        s: e or Q of the adapter, f: a language model's     (2)
                                        vector of the simple prompt
    L_CP  = KL(x' || f(p_c))            x': adapted states of the simple prompt, f(p_c):    (3)
                                        states of the complex prompt

both at every token, summed over tokens and averaged over the batch. (3) is the paper's equation 9.
(2) is the authors' code, with s = e and the vector the same for all tokens; the paper's equation 5
has KL(W_0 f || Q), which is ``direction="teacher"`` and ``target="query"`` here. The authors call
torch's ``F.kl_div(log p(teacher), p(student))``, which is KL(student || teacher). Their temperature
is 1.

W_0 and b_0 are random and fixed, as torch's ``nn.Linear`` starts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from emu_jax.nn.functional import Params

Tokens = Literal["sum", "mean"]


@dataclass(frozen=True)
class Distillation:
    """The weights ``llm`` of (2) and ``prompt`` of (3), and which of their forms is computed.

    ``column`` is the manifest's column of complex prompts. A loss of weight 0 is not computed, and
    its data are not read. Where the encoder masks padding, the first ``simple_tokens`` of the
    simple prompts are read (0: all): plain sentences are short, and an adapter costs as much for
    padding as for words.
    """

    llm: float = 1e-5
    prompt: float = 1e-5
    target: Literal["encoder", "query"] = "encoder"
    direction: Literal["student", "teacher"] = "student"
    tokens: Tokens = "sum"
    column: str = "complex"
    simple_tokens: int = 0


def divergence(first: Float[Array, "*b d"], second: Float[Array, "*#b d"]) -> Float[Array, "*b"]:
    """Equation (1), KL(first || second), in fp32."""
    log_u, log_v = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (first, second))
    return jnp.sum(jnp.exp(log_u) * (log_u - log_v), axis=-1)


def over_tokens(
    values: Float[Array, "b l"], mask: Bool[Array, "b l"], tokens: Tokens
) -> Float[Array, "b"]:
    """The sum or the mean over the tokens in ``mask``."""
    total = jnp.sum(values * mask, axis=1)
    return total if tokens == "sum" else total / jnp.maximum(jnp.sum(mask, axis=1), 1)


def llm_loss(
    student: Float[Array, "b l d"],
    vector: Float[Array, "b v"],
    projection: Params,
    mask: Bool[Array, "b l"],
    direction: Literal["student", "teacher"] = "student",
    tokens: Tokens = "sum",
) -> Float[Array, "b"]:
    """Equation (2) for each row. ``projection``: W_0 and b_0 of :func:`fixed_projections`."""
    kernel = projection["kernel"].astype(jnp.float32)
    teacher = vector.astype(jnp.float32) @ kernel + projection["bias"]
    teacher = jnp.broadcast_to(teacher[:, None], student.shape)
    pair = (student, teacher) if direction == "student" else (teacher, student)
    return over_tokens(divergence(*pair), mask, tokens)


def prompt_loss(
    student: Float[Array, "b l d"],
    teacher: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    tokens: Tokens = "sum",
) -> Float[Array, "b"]:
    """Equation (3) for each row."""
    return over_tokens(divergence(student, teacher), mask, tokens)


def fixed_projections(vector: int, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """W_0 and b_0 from vectors of width ``vector`` to each encoder's ``widths``, by path: uniform
    in +-1 / sqrt(vector), the same numbers in every run.
    """
    found, bound = {}, 1 / math.sqrt(vector)
    for i, (name, width) in enumerate(widths.items()):
        rng = np.random.default_rng((2305, i))
        for leaf, shape in (("kernel", (vector, width)), ("bias", (width,))):
            found[f"{name}/{leaf}"] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return found
