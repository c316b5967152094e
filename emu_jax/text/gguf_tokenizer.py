"""The tokenizer in a GGUF file's metadata, as one of the library ``tokenizers``.

    tokenizer.ggml.model  is                                             of
    gpt2                  byte-level BPE, whose merges are in the file   SmolLM2
    llama                 SentencePiece's BPE, whose merges follow from  LLaMA 1 and 2
                          the scores

The result equals that of transformers for the same file, except that a file may say that no space
is put before a text (``add_space_prefix``).
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from emu_jax.checkpoint.foreign import entry
from emu_jax.errors import UserError

# Values of ``tokenizer.ggml.pre`` whose texts are split by the rule of GPT-2 before merging.
_SPLITS = ("default", "gpt-2", "smollm")
_LONGEST = 1000
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that stay whole in a text


def gguf_tokenizer(metadata: dict[str, Any], source: Any) -> Tokenizer:
    """The tokenizer; it adds the tokens around a text that the model was trained with.

    Raises:
      UserError: the metadata lack an entry, or name a kind of tokenizer that is not supported;
        ``source`` is the file.
    """

    def value(name: str, kind: Any, default: Any = None) -> Any:
        key = f"tokenizer.ggml.{name}"
        if default is not None and key not in metadata:
            return default
        return entry(metadata, key, kind, source)

    model, tokens = value("model", str), value("tokens", list)
    types = [*value("token_type", object, [])] or [1] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(
            f"{source}: there are {len(tokens)} tokens, but {len(types)} types of tokens."
        )
    if max(map(len, tokens), default=0) > _LONGEST:
        raise UserError(f"{source}: a token has more than {_LONGEST} characters.")
    if model == "gpt2":
        tokenizer = _byte_level(tokens, value("merges", list), value("pre", str, "default"), source)
    elif model == "llama":
        scores = [*value("scores", object)]
        if len(scores) != len(tokens):
            raise UserError(f"{source}: there are {len(tokens)} tokens, but {len(scores)} scores.")
        tokenizer = _sentencepiece(tokens, scores, value("add_space_prefix", bool, True))
    else:
        raise UserError(
            f"{source} has a tokenizer of kind {model!r}; only gpt2 and llama are supported."
        )
    typed = [*zip(tokens, types, strict=True)]
    whole = [AddedToken(t, normalized=False, special=True) for t, n in typed if n == _CONTROL]
    tokenizer.add_special_tokens(whole)
    plain = [t for t, n in typed if n == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in plain])

    around = {}
    for name, default in (("bos", model == "llama"), ("eos", False)):
        if value(f"add_{name}_token", bool, default):
            number = value(f"{name}_token_id", int)
            if not 0 <= number < len(tokens):
                raise UserError(f"{source}: the {name} token is {number}, which is no token.")
            around[name] = (tokens[number], number)
    if around:
        first, last = (around.get(name, ("",))[0] for name in ("bos", "eos"))
        template = [part for part in (first, "$A", last) if part]
        tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[*dict(around.values()).items()]
        )
    return tokenizer


def _byte_level(tokens: list[str], merges: list[str], split: str, source: Any) -> Tokenizer:
    if split not in _SPLITS:
        raise UserError(
            f"{source} splits texts by the rule {split!r} (tokenizer.ggml.pre); only "
            f"{', '.join(_SPLITS)} are supported."
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _sentencepiece(tokens: list[str], scores: list[float], space: bool) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if space else "never", split=False
    )
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbors whose union has the highest score. As merges in order:
    every way to make a token of two, those of the highest score first."""
    found: list[tuple[tuple[float, int, int], str, str]] = []
    for token, score in scores.items():
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [((score, len(a), len(b)), a, b) for a, b in known]
    found.sort(key=lambda merge: merge[0], reverse=True)
    return [(a, b) for _, a, b in found]
