"""Prompt weighting: parts of a prompt count more or less, spelled as in two other tools.

    syntax   spelling                                                     factor of a part
    a1111    (part)  [part]  (part:1.3), nested                           1.1, 1/1.1, the number
    compel   word++  word--  (part)++  (part)--  (part)1.2, nested        1.1 or 0.9 per sign, the
                                                                          number

Factors of nested parts are multiplied. A backslash before a bracket, a sign, a colon or another
backslash makes it text. Both act on the states z [l, w] of a text encoder, where token i has the
weight w_i and z0 are the states of the empty prompt:

    compel   z_i' = z0_i + w_i (z_i - z0_i)                                                (1)
    a1111    z' = y mean(z) / mean(y),  y_i = w_i z_i                                      (2)

The means in (2) are over all channels of the positions that the denoiser may attend to, of one
prompt. A token has the weight of its last character; the tokens that an encoder adds (start, end,
padding) have 1. The pooled vector is that of the plain prompt, as in both tools. compel itself
moreover blends in the prompt without the part where a weight is below 1; (1) does not.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, NoReturn, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from emu_jax.errors import UserError
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.text.encoder import TextEncoder

Syntax = Literal["none", "a1111", "compel"]
SYNTAXES: tuple[str, ...] = get_args(Syntax)
_UP, _DOWN = 1.1, 0.9
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_WORD = re.compile(r"[^\s()\\,;:!?\"]+")
_SIGNED = re.compile(r"([^\s()\\,;:!?\"]*\w)([+-]+)(?=[\s()\\,.;:!?\"']|$)")
_AFTER = re.compile(r"(?:[+-]+|\.?\d)[\w.+-]*(?<!\.)")  # a full stop at its end is text
_FUNCTION = re.compile(r"\.(and|blend|swap)\(")


class Weighted(NamedTuple):
    """A prompt without its markup, and the weight of each character."""

    text: str
    weights: list[float]


def parse(prompt: str, syntax: str) -> Weighted:
    """The text and weights of a prompt; ``syntax`` "none": all of it is text.

    Raises:
      UserError: unbalanced brackets, a weight that is not a number, or markup that is not for
        weights.
    """
    if syntax not in SYNTAXES:
        raise UserError(f"prompt_weighting is {syntax!r}; use one of {', '.join(SYNTAXES)}.")
    if syntax == "none":
        return Weighted(prompt, [1.0] * len(prompt))
    return (_parse_a1111 if syntax == "a1111" else _parse_compel)(prompt)


def plain(prompts: Sequence[str], syntax: str) -> list[str]:
    """The prompts without their markup."""
    return [parse(prompt, syntax).text for prompt in prompts]


class _Part(NamedTuple):
    """An open bracket: where it is in the prompt, and where its text begins."""

    bracket: str
    place: int
    start: int


class _Reader:
    """The text read so far, its weights, and the brackets that are open."""

    def __init__(self, prompt: str):
        self.prompt, self.text, self.weights, self.open = prompt, "", [], list[_Part]()

    def add(self, text: str) -> None:
        self.text, self.weights = self.text + text, self.weights + [1.0] * len(text)

    def scale(self, start: int, factor: float) -> None:
        self.weights[start:] = [factor * weight for weight in self.weights[start:]]

    def close(self, place: int) -> _Part:
        found, bracket = self.open.pop() if self.open else None, self.prompt[place]
        if found is None or found.bracket + bracket not in ("()", "[]"):
            self.refuse(
                f"closes nothing with the {bracket!r} at character {place + 1}",
                f"open it, or write \\{bracket} for a bracket that is text",
            )
        return found

    def end(self) -> Weighted:
        if self.open:
            bracket, place, _ = self.open[-1]
            self.refuse(
                f"does not close the {bracket!r} at character {place + 1}",
                f"close it, or write \\{bracket} for a bracket that is text",
            )
        return Weighted(self.text, self.weights)

    def refuse(self, what: str, mend: str) -> NoReturn:
        shown = self.prompt if len(self.prompt) <= 80 else f"{self.prompt[:77]}..."
        raise UserError(f"The prompt {shown!r} {what}; {mend}.")


def _parse_a1111(prompt: str) -> Weighted:
    reader, i = _Reader(prompt), 0
    colons: list[int | None] = []  # in the text of each open part: its last colon
    while i < len(prompt):
        sign = prompt[i]
        if sign == "\\" and prompt[i + 1 : i + 2] in tuple("()[]:\\"):
            i += 1
            reader.add(prompt[i])
        elif sign in "([":
            reader.open.append(_Part(sign, i, len(reader.text)))
            colons.append(None)
        elif sign in ")]":
            part, factor = reader.close(i), _UP if sign == ")" else 1 / _UP
            colon = colons.pop()
            if colon is not None and sign == "]":
                reader.refuse(
                    f"has a ':' in the brackets that open at character {part.place + 1}, which "
                    "changes prompts during sampling elsewhere and is not supported",
                    "write (part:0.8) for a weight, or \\: for a colon that is text",
                )
            if colon is not None:
                factor = _number(reader, reader.text[colon + 1 :], "\\: for a colon that is text")
                reader.text, reader.weights = reader.text[:colon], reader.weights[:colon]
            reader.scale(part.start, factor)
        else:
            if sign == ":" and colons:
                colons[-1] = len(reader.text)
            if sign == "|" and reader.open and reader.open[-1].bracket == "[":
                reader.refuse(
                    "has a '|' in square brackets, which alternates prompts elsewhere and is not "
                    "supported",
                    "write \\[ and \\] for brackets that are text",
                )
            reader.add(sign)
        i += 1
    return reader.end()


def _parse_compel(prompt: str) -> Weighted:
    reader, i = _Reader(prompt), 0
    function = _FUNCTION.search(prompt)
    if function:
        reader.refuse(f"calls {function[0]}...), which is not supported", "use weights only")
    while i < len(prompt):
        word, signed = _WORD.match(prompt, i), _SIGNED.match(prompt, i)
        if prompt[i] == "\\" and prompt[i + 1 : i + 2] in tuple("()+-:\\"):
            reader.add(prompt[i + 1])
            i += 2
        elif prompt[i] == "(":
            reader.open.append(_Part("(", i, len(reader.text)))
            i += 1
        elif prompt[i] == ")":
            part = reader.close(i)
            after = _AFTER.match(prompt, i + 1)
            reader.scale(part.start, _factor(reader, after[0] if after else ""))
            i = after.end() if after else i + 1
        elif signed:
            start = len(reader.text)
            reader.add(signed[1])
            reader.scale(start, _factor(reader, signed[2]))
            i = signed.end()
        else:
            reader.add(word[0] if word else prompt[i])
            i = word.end() if word else i + 1
    return reader.end()


def _factor(reader: _Reader, text: str) -> float:
    """Of ``++``, ``--`` or a number; 1 of nothing."""
    if set(text) <= {"+"}:
        return _UP ** len(text)
    if set(text) <= {"-"}:
        return _DOWN ** len(text)
    return _number(
        reader, text, f"\\{text[0]} for text" if text[0] in "+-" else "a space before it"
    )


def _number(reader: _Reader, text: str, escaped: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    number = float(found[0]) if found else math.inf
    if not math.isfinite(number):
        reader.refuse(
            f"has the weight {text!r}, which is not a number",
            f"write a number such as 1.2, or {escaped}",
        )
    return number


def token_weights(encoder: TextEncoder, prompts: Sequence[Weighted]) -> Float32[np.ndarray, "b l"]:
    """The weight of every token of the encoder: that of its last character."""
    found = np.ones((len(prompts), encoder.length), np.float32)
    spans = encoder.spans([prompt.text for prompt in prompts])
    for row, prompt, ends in zip(found, prompts, spans, strict=True):
        real = ends[:, 1] > ends[:, 0]
        row[real] = np.array(prompt.weights, np.float32)[ends[real, 1] - 1]
    return found


def tokenize(
    encoders: Mapping[str, TextEncoder], prompts: Sequence[str], syntax: str
) -> dict[str, dict[str, np.ndarray]]:
    """The tokens of the prompts for each encoder; with ``weights`` where some weight is not 1."""
    read = [parse(prompt, syntax) for prompt in prompts]
    texts = [prompt.text for prompt in read]
    tokens: dict[str, dict[str, np.ndarray]]
    tokens = {name: {**encoder.tokenize(texts)} for name, encoder in encoders.items()}
    if any(weight != 1 for prompt in read for weight in prompt.weights):
        for name, encoder in encoders.items():
            tokens[name]["weights"] = token_weights(encoder, read)
    return tokens


def encode(
    encoder: TextEncoder, params: Params, tokens: Mapping[str, Array], syntax: str
) -> Encoded:
    """The encoder's output for :func:`tokenize`'s tokens; pure."""
    found = encoder.apply(params, tokens["ids"], tokens["mask"])
    if "weights" not in tokens:
        return found
    weights = tokens["weights"]
    if syntax == "a1111":
        return found._replace(states=restored(found.states, weights, found.mask))
    none = encoder.tokenize([""])
    empty = encoder.apply(params, jnp.asarray(none["ids"]), jnp.asarray(none["mask"]))
    return found._replace(states=away_from(empty.states, found.states, weights))


def away_from(
    empty: Float[Array, "1 l w"], states: Float[Array, "b l w"], weights: Float[Array, "b l"]
) -> Float[Array, "b l w"]:
    """Equation (1), in fp32; states of weight 1 stay as they are, bit for bit."""
    w, z, z0 = weights[..., None], states.astype(jnp.float32), empty.astype(jnp.float32)
    return jnp.where(w == 1, states, (z0 + w * (z - z0)).astype(states.dtype))


def restored(
    states: Float[Array, "b l w"], weights: Float[Array, "b l"], mask: Bool[Array, "b l"]
) -> Float[Array, "b l w"]:
    """Equation (2), in fp32; a prompt whose weights are all 1 stays as it is, bit for bit."""
    z = states.astype(jnp.float32)
    y = weights[..., None] * z
    before, after = (jnp.mean(x, (1, 2), where=mask[..., None], keepdims=True) for x in (z, y))
    plain = jnp.all(weights == 1, axis=1)[:, None, None]
    return jnp.where(plain, states, (y * (before / after)).astype(states.dtype))
