"""The SUR-adapter (Zhong et al. 2023, arXiv:2305.05189), a network on a text encoder's states.

It is trained so that a plain sentence conditions the generator as an elaborate prompt would. With
the states x [l, d] of one prompt,

    e    = two post-norm transformer encoder layers of x                                    (1)
    Q, K = W_q e + b_q, W_k x + b_k                                                         (2)
    w    = softmax(Q K^T / sqrt(d)) x + x                                                   (3)
    a    = w + W_2 relu(W_1 w + b_1) + b_2                                                  (4)
    c    = W_g a + b_g                                                                      (5)
    x'   = eta c + (1 - eta) x                                                              (6)

(6) is equation 10 of the paper and takes the place of x; the other equations are those of the
authors' code. W_g starts at zero by default, so x' starts as (1 - eta) x + eta b_g. It does not
start as x: the paper's x' is a mixture, not a residual.

A token attends to the tokens of its own prompt that the encoder's mask leaves; CLIP's mask leaves
all, padding included. (The authors' code leaves ``batch_first`` unset, so there a token attends to
the same position of other prompts.) A pooled vector stays as it is. The paper covers one CLIP; an
adapter for every encoder is our choice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from emu_jax.errors import UserError
from emu_jax.nn.attention import key_mask, merge_heads, split_heads
from emu_jax.nn.conditioner import Conditioner, Encoded
from emu_jax.nn.functional import Network, Params, nest
from emu_jax.nn.layers import LayerNorm

GateInit = Literal["zeros", "kaiming", "normal", "uniform"]
PREFIX = "conditioner/adapter"  # of the parameters among those of a generator

# The starts of W_g that figure 6 compares, with the defaults of torch.nn.init.
GATES = {
    "zeros": nnx.initializers.zeros_init(),
    "kaiming": nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "normal": nnx.initializers.normal(1.0),
    "uniform": nnx.initializers.uniform(1.0),
}


class Adaptation(NamedTuple):
    """What an adapter computes of a prompt: (6), (1) and the query of (2)."""

    states: Float[Array, "b l d"]
    encoder: Float[Array, "b l d"]
    query: Float[Array, "b l d"]


class TextAdapter(nnx.Module):
    """Equations (1) to (6) for states of ``width`` channels.

    ``hidden`` is the width of the feed-forward networks in (1). ``init`` is the start of W_g, and
    ``zero_bias`` starts b_g at zero. All other layers start as torch's ``nn.Linear`` does.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int = 2,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        eta: float = 0.1,
        init: GateInit = "zeros",
        zero_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if init not in GATES:
            raise UserError(f"adapter.init is {init!r}; use one of {', '.join(GATES)}.")
        if heads < 1 or width % heads:
            raise UserError(
                f"adapter.heads is {heads}, which does not divide the text encoder's width {width}."
            )
        self.eta = eta
        self.layers = nnx.List(
            [EncoderLayer(width, heads, hidden, dropout, rngs=rngs) for _ in range(layers)]
        )
        self.query = _linear(width, width, rngs)
        self.key = _linear(width, width, rngs)
        self.linear1 = _linear(width, width, rngs)
        self.linear2 = _linear(width, width, rngs)
        self.gate = _linear(width, width, rngs, GATES[init], zero_bias)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None = None,
        key: jax.Array | None = None,
    ) -> Adaptation:
        """``mask``: the tokens that may be attended to. ``key``: of the dropouts; None: none."""
        encoded = x
        for i, layer in enumerate(self.layers):
            encoded = layer(encoded, mask, None if key is None else jax.random.fold_in(key, i))
        query = self.query(encoded)
        q, k, v = (split_heads(y, 1) for y in (query, self.key(x), x))
        w = merge_heads(_attend(q, k, v, mask)) + x
        a = w + self.linear2(jax.nn.relu(self.linear1(w)))
        states = self.eta * self.gate(a) + (1 - self.eta) * x
        return Adaptation(states, encoded, query)


class EncoderLayer(nnx.Module):
    """A transformer encoder layer of torch: LayerNorms after the sums, relu, four dropouts."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.heads, self.dropout = heads, dropout
        self.in_proj = _linear(width, 3 * width, rngs)  # query, key and value
        self.out_proj = _linear(width, width, rngs)
        self.linear1 = _linear(width, hidden, rngs)
        self.linear2 = _linear(hidden, width, rngs)
        self.norm1 = LayerNorm(width, rngs=rngs)
        self.norm2 = LayerNorm(width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "b l d"]:
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        drop = [lambda y, key=key: _dropped(y, self.dropout, key) for key in keys]
        q, k, v = (split_heads(y, self.heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        y = self.out_proj(merge_heads(_attend(q, k, v, mask, drop[0])))
        x = self.norm1(x + drop[1](y))
        y = self.linear2(drop[2](jax.nn.relu(self.linear1(x))))
        return self.norm2(x + drop[3](y))


class AdaptedConditioner(Conditioner):
    """A conditioner of adapted states: an adapter for each encoder, then the projections.

    ``adapter`` holds the options of :class:`TextAdapter`. With ``on_null`` False the null text and
    negative prompts are not adapted in sampling; the authors adapt them. At eta = 0 the adapters
    are not computed, so that a program rounds as without them.
    """

    def __init__(
        self,
        encoders: Mapping[str, tuple[int, int]],
        *,
        adapter: Mapping[str, Any],
        on_null: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(encoders, rngs=rngs, **options)
        self.on_null, self.eta = on_null, adapter.get("eta")
        self.adapter = nnx.Dict(
            {
                name: TextAdapter(width, **adapter, rngs=rngs)
                for name, (width, _) in encoders.items()
            }
        )

    def __call__(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None = None
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"], Float[Array, "b p"] | None]:
        if self.eta == 0:
            return self.joined(encoded, sizes)
        return self.joined(with_states(encoded, self.adapt(encoded)), sizes)

    def unconditional(
        self, encoded: Mapping[str, Encoded], sizes: Int[Array, "b 6"] | None = None
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"], Float[Array, "b p"] | None]:
        return self(encoded, sizes) if self.on_null else self.joined(encoded, sizes)

    def adapt(
        self, encoded: Mapping[str, Encoded], key: jax.Array | None = None
    ) -> dict[str, Adaptation]:
        """Every encoder's adaptation; ``key`` is that of the dropouts."""
        found = {}
        for i, name in enumerate(self.encoders):
            own = None if key is None else jax.random.fold_in(key, i)
            found[name] = self.adapter[name](encoded[name].states, encoded[name].mask, own)
        return found


def with_states(
    encoded: Mapping[str, Encoded], adapted: Mapping[str, Adaptation]
) -> dict[str, Encoded]:
    """``encoded`` with adapted states."""
    return {name: text._replace(states=adapted[name].states) for name, text in encoded.items()}


@dataclass(frozen=True)
class TextAdapters:
    """The adapters of a generator's text encoders as parameters of their own, laid over a frozen
    base (:class:`emu_jax.tasks.adapting.Adapter`). ``options`` are those of :class:`TextAdapter`.
    """

    options: Mapping[str, Any]

    def init(self, key: jax.Array, shapes: Mapping[str, Any]) -> Params:
        """``shapes``: the parameters of a generator with an :class:`AdaptedConditioner`."""
        head, tail = f"{PREFIX}/", "/gate/bias"
        found: Params = {}
        names = [path for path in sorted(shapes) if path.startswith(head) and path.endswith(tail)]
        for i, path in enumerate(names):
            (width,) = shapes[path].shape
            network = Network(
                lambda rngs, width=width: TextAdapter(width, **self.options, rngs=rngs)
            )
            own = network.init(jax.random.fold_in(key, i))
            found |= nest(path.removesuffix(tail), own)
        return found

    def copied(self, shapes: Mapping[str, Any]) -> dict[str, str]:
        """Nothing starts from the base's values."""
        return {}

    def merged(self, base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
        own = {path: x for path, x in adapter.items() if path.startswith(f"{PREFIX}/")}
        return {**base, **own}


def _linear(
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    kernel: nnx.Initializer | None = None,
    zero_bias: bool = False,
) -> nnx.Linear:
    """Kernel and bias uniform in +-1 / sqrt(inputs), as torch's ``nn.Linear``."""

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Array:
        bound = 1 / math.sqrt(inputs)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    bias = nnx.initializers.zeros_init() if zero_bias else uniform
    return nnx.Linear(inputs, outputs, kernel_init=kernel or uniform, bias_init=bias, rngs=rngs)


def _attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    mask: Bool[Array, "b m"] | None,
    drop: Any = lambda weights: weights,
) -> Float[Array, "b n h d"]:
    """Attention with a dropout of its weights; logits and softmax are in fp32."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(q.shape[-1])
    if (kept := key_mask(mask)) is not None:
        logits = jnp.where(kept, logits, jnp.finfo(jnp.float32).min)
    weights = drop(jax.nn.softmax(logits, axis=-1)).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _dropped(x: Float[Array, "*b"], rate: float, key: jax.Array | None) -> Float[Array, "*b"]:
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
