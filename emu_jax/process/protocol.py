"""The interfaces of a corruption process and of a sampler, as generation and the loop use them.

Data are fp32 where they are continuous and int32 where they are tokens. Time t runs from 0 (clean)
to 1 (no information left).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from emu_jax.process.noise import Keys

Data = Float[Array, "b *d"] | Int[Array, "b *d"]
Time = Float[Array, ""] | Float[Array, " b"] | float
"""One t for all rows, or one per row."""
Transform = Callable[[Float[Array, "b *d"]], Float[Array, "b *d"]]


class Corrupted(NamedTuple):
    """Training examples: the network gets x and timestep_input, and its loss is against target."""

    x: Data
    t: Float[Array, " b"]
    timestep_input: Float[Array, " b"]
    target: Data
    weight: Float[Array, " b"]


class Process(Protocol):
    """``bounds``: the range of t in training and sampling."""

    @property
    def bounds(self) -> tuple[float, float]: ...

    def corrupt(self, key: Keys, x0: Data, t: Time | None = None) -> Corrupted:
        """A training example of every row; t is random unless given. One key, or one per row."""
        ...

    def loss(self, output: Float[Array, "b *o"], corrupted: Corrupted) -> Float[Array, " b"]:
        """The weighted loss of each row."""
        ...

    def split_output(
        self, output: Float[Array, "b *o"]
    ) -> tuple[Float[Array, "b *p"], Float[Array, "b *v"] | None]:
        """The part of an output that guidance changes, and the part that it leaves, if any."""
        ...

    def timestep_input(self, t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        """The timestep input of the network at t."""
        ...

    def predict(
        self,
        output: Float[Array, "b *o"],
        x: Data,
        t: Time,
        transform: Transform | None = None,
    ) -> Any:
        """What an output says about x at t, in the form that the samplers of the process use."""
        ...

    def clean_data(self, prediction: Any, x: Data) -> Data:
        """The clean data that a result of :meth:`predict` for x describes."""
        ...

    def prior(self, key: Keys, shape: Sequence[int]) -> Data:
        """A sample of the distribution at t = 1, where sampling starts. One key, or one per row."""
        ...

    def sample_forward(self, key: Keys, x0: Data, t: Time) -> Data:
        """A sample of x at t given x0, where sampling from an image starts. One key, or one per
        row.
        """
        ...

    def known_at(self, key: Keys, known: Data, t: Time) -> Data:
        """The known part of the data as the network gets it at t."""
        ...

    def held_at(self, keep: Float[Array, "..."], t: Time) -> Bool[Array, "..."]:
        """Whether data of which the share ``keep`` stays are held to what is known at t."""
        ...


class Sampler(Protocol):
    """One step of a process, from time t to an earlier time s. A sampler knows one kind of process
    and reads the result of its ``predict``.
    """

    def calls(self, steps: int) -> int:
        """Evaluations of the denoiser in ``steps`` steps, of which the last ends at 0."""
        return steps

    def init(self, x: Data) -> Any:
        """The memory before the first step: what a step needs from the steps before it."""
        ...

    def step(
        self,
        predict: Callable[[Any, Float[Array, ""]], Any],
        process: Any,
        x: Any,
        memory: Any,
        t: Float[Array, ""],
        s: Float[Array, ""],
        key: Keys,
    ) -> tuple[Any, Any]:
        """x at s from x at t, s < t, and the new memory."""
        ...


def as_data(x: Any) -> Data:
    """Integers (tokens) in int32, everything else in fp32."""
    whole = jnp.issubdtype(jnp.result_type(x), jnp.integer)
    return jnp.asarray(x, jnp.int32 if whole else jnp.float32)
