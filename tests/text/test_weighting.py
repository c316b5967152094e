"""Prompt weighting: what is read from a prompt, which tokens it reaches, and what it does there."""

import encoders
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.text.encoder import make_encoder
from emu_jax.text.weighting import away_from, encode, parse, restored, token_weights, tokenize

U, D = 1.1, 0.9
READ = [
    ("none", "((a)) b++", [("((a)) b++", 1)]),
    ("a1111", "a (red:1.3) fox", [("a ", 1), ("red", 1.3), (" fox", 1)]),
    ("a1111", "((a)) [b] (c)", [("a", U * U), (" ", 1), ("b", 1 / U), (" ", 1), ("c", U)]),
    ("a1111", "(a (b:2) c: .5 )", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
    ("a1111", r"\(a\) (b\: c:-1) 1:2 \x", [("(a) ", 1), ("b: c", -1), (" 1:2 \\x", 1)]),
    ("compel", "a red++ fox--,", [("a ", 1), ("red", U * U), (" ", 1), ("fox", D * D), (",", 1)]),
    ("compel", "(big dog)1.2. ok", [("big dog", 1.2), (". ok", 1)]),
    ("compel", "((a b)2 c-)++.", [("a b", 2 * U * U), (" ", U * U), ("c", D * U * U), (".", 1)]),
    ("compel", r"(s)he t-shirt -- c\+\+ \(x", [("she t-shirt -- c++ (x", 1)]),
]


@pytest.mark.parametrize(("syntax", "prompt", "parts"), READ)
def test_text_and_weights_are_read(syntax, prompt, parts):
    found = parse(prompt, syntax)
    assert found.text == "".join(text for text, _ in parts)
    assert found.weights == pytest.approx([weight for text, weight in parts for _ in text])


@pytest.mark.parametrize(
    ("syntax", "prompt", "sentence"),
    [
        ("a1111", "a (red", r"does not close the '\(' at character 3; close it"),
        ("a1111", "a [(red]", r"closes nothing with the '\]' at character 8; open it"),
        ("a1111", "(a:big)", "the weight 'big', which is not a number; write a number"),
        ("a1111", "[a:b:0.5]", "has a ':' in the brackets that open at character 1"),
        ("a1111", "[a|b]", r"has a '\|' in square brackets"),
        ("compel", "(a)) b", r"closes nothing with the '\)' at character 4"),
        ("compel", "(a)1.2.3", "the weight '1.2.3', which is not a number"),
        ("compel", "a+-", "the weight '\\+-', which is not a number"),
        ("compel", '("a", "b").blend(1, 2)', r"calls \.blend\(\.\.\.\), which is not supported"),
        ("midjourney", "a::2", "prompt_weighting is 'midjourney'; use one of none, a1111, compel"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(syntax, prompt, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(prompt, syntax)


def test_every_kind_of_encoder_weights_the_tokens_of_the_part(tmp_path):
    """Also where lower case has more characters than the text, and where a text is cut."""
    encoders.clip_text(tmp_path / "clip")
    encoders.t5(tmp_path / "t5")
    prompt = parse("  \u0130 a (red:1.3) fox (cat:2)", "a1111")  # \u0130: two in lower case
    options = dict(lowercase=True)
    for encoder, expected in (
        (make_encoder("clip", 8, path=tmp_path / "clip"), [1, 1, 1, 1, 1, 1.3, 1, 1]),
        (make_encoder("t5", 9, path=tmp_path / "t5"), [1, 1, 1, 1.3, 1, 2, 1, 1, 1]),
        (make_encoder("t5", 9, path=tmp_path / "t5", **options), [1, 1, 1, 1, 1.3, 1, 2, 1, 1]),
        (make_encoder("minilm", 8), [1, 1, 1, 1.3, 1, 2, 1, 1]),
    ):
        found = token_weights(encoder, [prompt])[0]
        np.testing.assert_array_equal(found, np.float32(expected), encoder.name)


def test_states_follow_the_equations_and_weight_one_changes_no_bit():
    chance = np.random.default_rng(0)
    z, z0 = chance.normal(size=(2, 2, 4, 5)).astype(np.float32)
    z0, w = z0[:1], np.array([[1, 1.5, 0, 1], [1, 1, 1, 1]], np.float32)
    mask = np.array([[True, True, True, False]] * 2)
    found = away_from(z0, z, w)
    np.testing.assert_allclose(found[0, 1], z0[0, 1] + 1.5 * (z[0, 1] - z0[0, 1]), rtol=1e-5)
    np.testing.assert_allclose(found[0, 2], z0[0, 2], rtol=1e-5)
    np.testing.assert_array_equal(found[0, [0, 3]], z[0, [0, 3]])
    np.testing.assert_array_equal(found[1], z[1])

    found = restored(z, w, mask)
    y = z[0] * w[0][:, None]
    np.testing.assert_allclose(found[0], y * z[0, :3].mean() / y[:3].mean(), rtol=2e-5)
    np.testing.assert_allclose(found[0, :3].mean(), z[0, :3].mean(), rtol=1e-4)
    np.testing.assert_array_equal(found[1], z[1])


def test_an_encoder_is_weighted_away_from_its_empty_prompt():
    encoder = make_encoder("minilm", 8)
    params = {path: jnp.asarray(x) for path, x in encoder.tensors()}

    def of(prompt: str, syntax: str) -> Encoded:
        tokens = tokenize({"minilm": encoder}, [prompt], syntax)["minilm"]
        assert ("weights" in tokens) == (prompt != "a red fox")
        return encode(encoder, params, tokens, syntax)

    plain = of("a red fox", "none")
    empty = encoder.apply(params, **encoder.tokenize([""]))
    np.testing.assert_array_equal(of("a red fox", "compel").states, plain.states)
    found = of("a (red)2 fox", "compel")
    expected = np.array(plain.states)
    expected[0, 2] = 2 * expected[0, 2] - np.array(empty.states)[0, 2]
    np.testing.assert_allclose(found.states, expected, atol=1e-5)
    np.testing.assert_array_equal(found.pooled, plain.pooled)
    assert np.abs(of("a (red:2) fox", "a1111").states - found.states).max() > 0.1
