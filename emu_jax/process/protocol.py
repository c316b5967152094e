"""What generation and the samplers' loop ask of a corruption process.

Data are fp32 where they are continuous and int32 where they are tokens. t runs from 0 (clean) to 1
(nothing left), one value a row or one for all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Data = Array  # Float[Array, "b *d"] or Int[Array, "b *d"]
Transform = Callable[[Float[Array, "b *d"]], Float[Array, "b *d"]]


class Corrupted(NamedTuple):
    """A training example: the network sees x and told, and is to answer target."""

    x: Data
    t: Float[Array, " b"]
    timestep_input: Float[Array, " b"]
    target: Data
    weight: Float[Array, " b"]


class Process(Protocol):
    """``bounds``: the times that training draws from and sampling spans."""

    @property
    def bounds(self) -> tuple[float, float]: ...

    def corrupt(
        self, key: jax.Array, x0: Data, t: Float[Array, " b"] | None = None
    ) -> Corrupted: ...

    def loss(self, output: Float[Array, "b *o"], corrupted: Corrupted) -> Float[Array, " b"]:
        """Each row's weighted loss."""
        ...

    def split(self, output: Float[Array, "b *o"]) -> tuple[Array, Array | None]:
        """What of an output guidance leads, and what it leaves as the condition has it."""
        ...

    def timestep_input(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """What the network is told of t."""
        ...

    def predict(
        self,
        output: Float[Array, "b *o"],
        x: Data,
        t: Float[Array, "*b"],
        transform: Transform | None = None,
    ) -> Any:
        """What an output says about x, in the terms of the process's samplers."""
        ...

    def prior(self, key: jax.Array, shape: Sequence[int]) -> Data:
        """Where sampling starts; one key, or one for each row."""
        ...

    def diffuse(self, key: jax.Array, x0: Data, t: Float[Array, "*b"] | float) -> Data:
        """x at t of a given picture; one key, or one for each row."""
        ...

    def shown(self, key: jax.Array, known: Data, t: Float[Array, ""]) -> Data:
        """A known part as the network is to see it at t."""
        ...


def as_data(x: Any) -> Data:
    """Tokens in int32, all else in fp32."""
    whole = jnp.issubdtype(jnp.result_type(x), jnp.integer)
    return jnp.asarray(x, jnp.int32 if whole else jnp.float32)
