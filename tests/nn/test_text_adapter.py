"""The SUR-adapter: parameters, a transcription in PyTorch, starts, masks, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Conditioner, Encoded
from emu_jax.nn.functional import Network
from emu_jax.nn.text_adapter import PREFIX, AdaptedConditioner, TextAdapter, TextAdapters

RANDOM = np.random.default_rng(0)
SMALL = dict(heads=2, hidden=12)


def network(width=8, **options):
    return Network(lambda rngs: TextAdapter(width, **(SMALL | options), rngs=rngs))


def states(length=5, width=8):
    return RANDOM.normal(size=(2, length, width)).astype(np.float32)


def test_it_has_the_papers_number_of_parameters():
    shapes = Network(lambda rngs: TextAdapter(768, rngs=rngs)).shapes()
    count = {"layers": 0, "gate": 0, "rest": 0}
    for path, x in shapes.items():
        part = path.partition("/")[0]
        count[part if part in count else "rest"] += x.size
    assert count == {"layers": 11_027_968, "rest": 2_362_368, "gate": 590_592}
    assert sum(count.values()) == 13_980_928


def transcription(params, x, eta, heads):
    """SUR-adapter, section 3, in torch's own layers; (x', e, Q)."""

    def linear(name):
        return {
            "weight": torch.tensor(params[f"{name}/kernel"].T),
            "bias": torch.tensor(params[f"{name}/bias"]),
        }

    def layer(i):
        head, width = f"layers/{i}", x.shape[-1]
        made = torch.nn.TransformerEncoderLayer(
            width, heads, params[f"{head}/linear1/bias"].size, 0.1, "relu", batch_first=True
        )
        projection = linear(f"{head}/in_proj")
        loaded = {f"self_attn.in_proj_{leaf}": y for leaf, y in projection.items()}
        for theirs, ours in (("self_attn.out_proj", "out_proj"), *[(2 * (n,)) for n in LINEARS]):
            own = linear(f"{head}/{ours}")
            loaded |= {f"{theirs}.{leaf}": y for leaf, y in own.items()}
        for norm in ("norm1", "norm2"):
            loaded[f"{norm}.weight"] = torch.tensor(params[f"{head}/{norm}/scale"])
            loaded[f"{norm}.bias"] = torch.tensor(params[f"{head}/{norm}/bias"])
        made.load_state_dict(loaded)
        return made.eval()

    def applied(name, y):
        return torch.nn.functional.linear(y, **linear(name))

    with torch.no_grad():
        x = torch.tensor(x)
        e = layer(1)(layer(0)(x))
        q, k = applied("query", e), applied("key", x)
        w = torch.softmax(q @ k.transpose(1, 2) / x.shape[-1] ** 0.5, dim=-1) @ x + x
        a = w + applied("linear2", torch.relu(applied("linear1", w)))
        return [y.numpy() for y in (eta * applied("gate", a) + (1 - eta) * x, e, q)]


LINEARS = ("linear1", "linear2")


def test_it_computes_what_torch_does():
    adapter, x = network(eta=0.3), states()
    params = {
        path: (0.5 * RANDOM.normal(size=shape.shape)).astype(np.float32)
        for path, shape in adapter.shapes().items()
    }
    for found, want in zip(adapter(params, x), transcription(params, x, 0.3, 2), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-4, rtol=1e-4)


def test_a_token_attends_within_its_own_prompt_to_unmasked_tokens():
    adapter, x = network(init="kaiming"), states()
    params = adapter.init(jax.random.key(0))
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    found = adapter(params, x, mask).states
    changed = x.copy()
    changed[0, 3:] += 1  # masked
    changed[1] += 1  # another prompt
    again = adapter(params, changed, mask).states
    np.testing.assert_array_equal(found[0, :3], again[0, :3])
    # Without its padding the prompt is the same.
    short = adapter(params, x[:1, :3]).states
    np.testing.assert_allclose(found[:1, :3], short, atol=1e-5)


def test_its_last_layer_starts_as_it_is_told():
    x = states()
    for options, gate in (
        (dict(init="zeros", zero_bias=True), 0.0),
        (dict(init="kaiming"), (2 / 256) ** 0.5),
        (dict(init="normal"), 1.0),
        (dict(init="uniform"), 1 / 12**0.5),
    ):
        kernel = network(256, **options).init(jax.random.key(1))["gate/kernel"]
        np.testing.assert_allclose(np.std(kernel), gate, rtol=0.02)
    # A mixture of nothing with the states; at eta = 0 the states themselves.
    for eta in (0.1, 0.0):
        adapter = network(eta=eta, zero_bias=True)
        params = adapter.init(jax.random.key(0))
        np.testing.assert_allclose(adapter(params, x).states, (1 - eta) * x, rtol=1e-6)
    biased = network(eta=0.1)
    params = biased.init(jax.random.key(0))
    want = 0.9 * x + 0.1 * params["gate/bias"]
    assert np.any(params["gate/bias"]) and np.all(np.abs(params["gate/bias"]) <= 8**-0.5)
    np.testing.assert_allclose(biased(params, x).states, want, rtol=1e-5, atol=1e-6)


def test_dropout_is_of_the_key_and_keeps_the_mean():
    adapter, x = network(dropout=0.5, init="kaiming"), states()
    params = adapter.init(jax.random.key(0))
    plain = adapter(params, x)
    first, again, other = (adapter(params, x, None, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first.states, again.states)
    assert np.any(first.states != plain.states) and np.any(first.states != other.states)
    none = network(dropout=0.0, init="kaiming")(params, x, None, jax.random.key(0))
    np.testing.assert_array_equal(none.states, plain.states)


def test_a_conditioner_of_adapted_states():
    widths = {"clip": (8, 4), "t5": (6, 0)}
    given = dict(width=5, size_features=0)

    def conditioner(**options):
        arguments = given | dict(adapter=SMALL | dict(init="kaiming", zero_bias=True)) | options
        return Network(lambda rngs: AdaptedConditioner(widths, **arguments, rngs=rngs))

    plain = Network(lambda rngs: Conditioner(widths, **given, rngs=rngs))
    adapted = conditioner()
    params = adapted.init(jax.random.key(0))
    shapes = {f"conditioner/{path}": x for path, x in adapted.shapes().items()}
    own = TextAdapters(SMALL).init(jax.random.key(1), shapes)
    assert own.keys() == shapes.keys() - {f"conditioner/{path}" for path in plain.shapes()}
    assert all(path.startswith(f"{PREFIX}/") for path in own)
    base = {path: x for path, x in params.items() if not path.startswith("adapter/")}
    merged = TextAdapters(SMALL).merged({f"conditioner/{path}": x for path, x in base.items()}, own)
    assert merged.keys() == shapes.keys()

    mask = jnp.ones((2, 5), bool)
    pooled = jnp.asarray(states(1, 4)[:, 0])
    encoded = {
        "clip": Encoded(jnp.asarray(states()), mask, pooled),
        "t5": Encoded(jnp.asarray(states(5, 6)), mask),
    }
    context, _, vector = plain(base, encoded)
    np.testing.assert_array_equal(adapted(params, encoded, method="joined")[0], context)
    changed = {
        name: text._replace(states=adapter.states)
        for (name, text), adapter in zip(
            encoded.items(), adapted(params, encoded, method="adapt").values(), strict=True
        )
    }
    want = plain(base, changed)[0]
    np.testing.assert_array_equal(adapted(params, encoded)[0], want)
    assert np.any(want != context)
    np.testing.assert_array_equal(adapted(params, encoded)[2], vector)  # pooled text as it is
    np.testing.assert_array_equal(adapted(params, encoded, method="unconditional")[0], want)
    kept = conditioner(on_null=False)
    np.testing.assert_array_equal(kept(params, encoded)[0], want)
    np.testing.assert_array_equal(kept(params, encoded, method="unconditional")[0], context)
    # With a share of 0 the program is the base's, so that it also rounds as the base's.
    still = conditioner(adapter=SMALL | dict(eta=0.0))
    both = (plain, base), (still, params)
    programs = [jax.jit(lambda *x, f=f: f(*x)).lower(p, encoded).as_text() for f, p in both]
    assert programs[0] == programs[1]


def test_heads_divide_the_width():
    with pytest.raises(UserError, match=r"adapter\.heads is 3, which does not divide .* width 8"):
        network(heads=3)
