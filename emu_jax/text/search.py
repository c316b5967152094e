"""Greedy and beam search with a language model that computes one token at a time.

The results are those of transformers' ``generate`` with the same settings, whose rules they follow
(``early_stopping`` False). Both searches are one compiled loop of fixed shapes:

- a prefix, the same for all images, begins every sequence;
- a token that a sequence has already is made less likely by the repetition penalty;
- no sequence ends before it has ``min_length`` tokens, the prefix included;
- a beam search ranks sequences by

      sum of log p(token) / (number of tokens after the prefix)^length_penalty             (1)

  It keeps the best ``num_beams`` that have ended, and stops an image when none of its running
  sequences can become better than the worst of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError

# (ids [b, k], position, memory) -> (logits [b, k, vocabulary], memory)
Step = Callable[[Array, Array, Any], tuple[Array, Any]]
# (memory, rows [b, k]) -> memory of the sequences ``rows`` of each image
Reorder = Callable[[Any, Array], Any]
_WORST = -1e9


@dataclass(frozen=True)
class Settings:
    """The defaults are LAVIS's for captions, which SURD was built with. Lengths are in tokens and
    include the prefix."""

    num_beams: int = 3
    min_length: int = 10
    max_length: int = 30
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0

    def check(self, prefix: int, positions: int) -> None:
        """Raises UserError unless sequences with this prefix fit a network of ``positions``."""
        if not prefix < self.max_length <= positions:
            raise UserError(
                f"max_length is {self.max_length}; use {prefix + 1} to {positions}: the prompt has "
                f"{prefix} tokens, and the captioner reads {positions} at most."
            )
        if self.min_length > self.max_length:
            raise UserError(
                f"min_length is {self.min_length}, more than max_length, {self.max_length}; lower "
                "it."
            )
        if self.repetition_penalty <= 0:
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty:g}; it divides likelihoods and "
                "must be above 0."
            )


def search(
    step: Step,
    reorder: Reorder,
    memory: Any,
    batch: int,
    prefix: Sequence[int],
    end: int,
    settings: Settings,
) -> Int[Array, "b max_length"]:
    """The ids of one sequence per image: the prefix, the best continuation, and ``end`` from its
    end on. ``memory`` has room for ``num_beams`` sequences of ``max_length`` tokens each."""
    k, length = settings.num_beams, settings.max_length
    running = jnp.full((batch, k, length), end).at[:, :, : len(prefix)].set(jnp.array(prefix))
    for position in range(len(prefix) - 1):
        _, memory = step(running[:, :, position], jnp.array(position), memory)
    run = _greedy if k == 1 else _beams
    return run(step, reorder, memory, running, len(prefix), end, settings)


class _Greedy(NamedTuple):
    count: Array  # of tokens
    tokens: Int[Array, "b 1 max_length"]
    ended: Bool[Array, " b"]
    memory: Any


def _greedy(
    step: Step,
    reorder: Reorder,
    memory: Any,
    tokens: Int[Array, "b 1 max_length"],
    count: int,
    end: int,
    settings: Settings,
) -> Int[Array, "b max_length"]:
    def advance(state: _Greedy) -> _Greedy:
        count, tokens, ended, memory = state
        logits, memory = step(tokens[:, :, count - 1], count - 1, memory)
        new = jnp.argmax(_processed(logits, tokens, count, end, settings)[:, 0], axis=-1)
        new = jnp.where(ended, end, new)
        return _Greedy(count + 1, tokens.at[:, 0, count].set(new), ended | (new == end), memory)

    start = _Greedy(jnp.array(count), tokens, jnp.zeros(len(tokens), bool), memory)
    going = jax.lax.while_loop(
        lambda state: (state.count < settings.max_length) & ~state.ended.all(), advance, start
    )
    return going.tokens[:, 0]


class _Beams(NamedTuple):
    count: Array  # of tokens
    running: Int[Array, "b k max_length"]
    scores: Float[Array, "b k"]  # of the running sequences: sums of logarithms
    ended: Int[Array, "b k max_length"]  # the best sequences that have ended
    ended_scores: Float[Array, "b k"]  # equation (1)
    full: Bool[Array, "b k"]  # whether there is such a sequence
    open: Bool[Array, " b"]  # whether a running sequence may become better than these
    memory: Any


def _beams(
    step: Step,
    reorder: Reorder,
    memory: Any,
    running: Int[Array, "b k max_length"],
    prefix: int,
    end: int,
    settings: Settings,
) -> Int[Array, "b max_length"]:
    b, k, length = running.shape

    def advance(state: _Beams) -> _Beams:
        count = state.count
        logits, memory = step(state.running[:, :, count - 1], count - 1, state.memory)
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        logs = _processed(logs, state.running, count, end, settings) + state.scores[..., None]
        # Twice as many candidates as beams: even if each beam ends, as many go on.
        scores, index = jax.lax.top_k(logs.reshape(b, -1), 2 * k)
        beam, token = index // logits.shape[-1], index % logits.shape[-1]
        candidates = _take(state.running, beam).at[:, :, count].set(token)
        ends = (token == end) | (count + 1 >= length)
        # Those that go on.
        best, rows = jax.lax.top_k(scores + ends * _WORST, k)
        # Those that end: only the best k candidates may.
        ending = ends & (jnp.arange(2 * k) < k)
        own = scores / (count + 1 - prefix) ** settings.length_penalty
        own = own + (~state.open[:, None] * _WORST) + (~ending * _WORST)
        ended_scores, kept = jax.lax.top_k(jnp.concatenate([state.ended_scores, own], axis=1), k)
        full = _take(jnp.concatenate([state.full, ending], axis=1), kept)
        bound = best[:, 0] / (count + 1 - prefix) ** settings.length_penalty
        worst = jnp.where(full, ended_scores.min(axis=1, keepdims=True), _WORST)
        return _Beams(
            count=count + 1,
            running=_take(candidates, rows),
            scores=best,
            ended=_take(jnp.concatenate([state.ended, candidates], axis=1), kept),
            ended_scores=ended_scores,
            full=full,
            open=state.open & (bound[:, None] > worst).any(axis=1),
            memory=reorder(memory, _take(beam, rows)),
        )

    first = jnp.where(jnp.arange(k) == 0, 0.0, _WORST)  # equal sequences begin: one of them counts
    start = _Beams(
        count=jnp.array(prefix),
        running=running,
        scores=jnp.broadcast_to(first, (b, k)),
        ended=running,
        ended_scores=jnp.full((b, k), _WORST),
        full=jnp.zeros((b, k), bool),
        open=jnp.ones(b, bool),
        memory=memory,
    )
    last = jax.lax.while_loop(
        lambda state: (state.count < length) & state.open.any(), advance, start
    )
    return last.ended[:, 0]


def _processed(
    scores: Float[Array, "b k v"],
    tokens: Int[Array, "b k max_length"],
    count: Array,
    end: int,
    settings: Settings,
) -> Float[Array, "b k v"]:
    """The scores with the repetition penalty, and without an end before ``min_length`` tokens."""
    b, k, v = scores.shape
    penalty = settings.repetition_penalty
    if penalty != 1:
        used = jnp.where(jnp.arange(tokens.shape[-1]) < count, tokens, v)
        rows = jnp.arange(b)[:, None, None], jnp.arange(k)[None, :, None]
        seen = jnp.zeros((b, k, v), bool).at[(*rows, used)].set(True, mode="drop")
        lower = jnp.where(scores < 0, scores * penalty, scores / penalty)
        scores = jnp.where(seen, lower, scores)
    early = (count < settings.min_length) & (jnp.arange(v) == end)
    return jnp.where(early, -jnp.inf, scores)


def _take(x: Array, rows: Int[Array, "b n"]) -> Array:
    """``x[i, rows[i]]`` for every image i."""
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1)
