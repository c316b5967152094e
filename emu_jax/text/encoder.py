"""The interface of frozen text encoders, and the registry of their kinds.

An encoder is a small picklable object. It tokenizes on the host, in the data workers. ``apply`` is
pure and runs inside the jitted step, with the parameters as an argument. Weights stay on disk until
``tensors`` streams them, and a checkpoint identifies them by ``fingerprint``.
"""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from emu_jax.checkpoint.safetensors_io import fingerprint
from emu_jax.errors import UserError
from emu_jax.nn.arguments import check_arguments
from emu_jax.nn.conditioner import Encoded
from emu_jax.nn.functional import Params
from emu_jax.parallel.sharding import replicated
from emu_jax.registry import loaded
from emu_jax.text.registry import ENCODERS

Tokens = dict[str, np.ndarray]
Null = Literal["empty", "zeros"]
DTYPES = ("float32", "bfloat16")  # T5 overflows in fp16


@dataclass(frozen=True)
class TextEncoder(ABC):
    """``length`` tokens per text, states of ``width`` channels, and a pooled vector of
    ``pooled_width`` channels (0: none).

    ``null`` is the unconditional input of classifier-free guidance: the encoded empty string, or
    zeros in place of states and pooled vector. ``dtype`` is the dtype of the parameters that
    ``tensors`` yields, and so the compute dtype.
    """

    name: str
    folder: Path
    length: int
    width: int
    pooled_width: int = 0
    null: Null = "empty"
    dtype: str = "float32"

    def __post_init__(self):
        if self.null not in get_args(Null):
            raise UserError(
                f"Encoder {self.name}: null is {' or '.join(get_args(Null))}, not {self.null!r}."
            )
        if self.dtype not in DTYPES:
            raise UserError(
                f"Encoder {self.name}: dtype is {' or '.join(DTYPES)}, not {self.dtype!r}."
            )

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """``{"ids": int32 [b, length], "mask": bool [b, length]}``; longer texts are cut."""
        ids, mask = self._tokenize(list(texts))
        empty = [text for text, row in zip(texts, mask, strict=True) if not row.any()]
        if empty:
            # Attention over nothing would silently average the padding.
            raise UserError(
                f"Encoder {self.name} finds no token in the text {empty[0]!r}: "
                "leave it out, or write a caption."
            )
        return {"ids": ids, "mask": mask}

    @abstractmethod
    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [b, length], mask bool [b, length])."""

    def spans(self, texts: Sequence[str]) -> Int[np.ndarray, "b l 2"]:
        """Start and end in the text of the characters of every token of :meth:`tokenize`; equal
        for tokens that no character became (start, end, padding).
        """
        raise UserError(
            f"The tokenizer of the encoder {self.name} does not say which characters its tokens "
            "are; draw without prompt_weighting."
        )

    @abstractmethod
    def apply(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Encoded:
        """Pure; computes in the dtype of ``params``."""

    @property
    def masks_padding(self) -> bool:
        """Whether the mask of :meth:`apply` leaves out padding."""
        return True

    @abstractmethod
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array of ``tensors``; reads no weights."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array in ``dtype``) of every parameter, one in memory at a time."""

    @property
    @abstractmethod
    def weights(self) -> Path:
        """The safetensors file, or folder of them, that ``tensors`` reads."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return fingerprint(str(self.weights))

    @property
    def tokenizer_files(self) -> Sequence[Path]:
        """The files that its tokenizer is made of."""
        return ()

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the names and contents of the tokenizer's files."""
        found = hashlib.sha256()
        for path in sorted(self.tokenizer_files):
            content = path.read_bytes()
            found.update(f"{path.name} {len(content)} ".encode() + content)
        return found.hexdigest()

    def settings(self) -> dict[str, Any]:
        """Everything except the weights that the output depends on."""
        aside = ("name", "folder", "null", "dtype", "size")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in aside}

    def __getstate__(self) -> dict[str, Any]:
        # Tokenizer and network are not sent to data workers; they are made again where needed.
        return {f.name: getattr(self, f.name) for f in fields(self)}


def make_encoder(
    kind: str, length: int | None = None, *, name: str = "", **options: Any
) -> TextEncoder:
    """An encoder of a kind, called ``name`` (else as its kind).

    The options are those of the kind's own function; all take ``path`` (a folder or a hub name),
    ``dtype`` and ``null``, and know a ``length`` of their own.
    """
    if kind not in ENCODERS:
        kinds = ", ".join(ENCODERS)
        raise UserError(f"No kind of text encoder is called {kind!r}; there is {kinds}.")
    maker: Callable[..., TextEncoder] = loaded(ENCODERS[kind])
    if length is not None:
        options["length"] = length
    known = [*inspect.signature(maker).parameters][1:]  # after the name
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"A text encoder of kind {kind} takes no {unknown[0]!r}; it takes {', '.join(known)}."
        )
    check_arguments(maker, options, f"text.{name or kind}")
    return maker(name or kind, **options)


def blank_output(encoder: TextEncoder) -> Encoded:
    """One row of zeros whose mask is true everywhere, in the shape of the encoder's output."""
    ids = jax.ShapeDtypeStruct((1, encoder.length), np.int32)
    mask = jax.ShapeDtypeStruct((1, encoder.length), bool)
    shapes = jax.eval_shape(encoder.apply, encoder.shapes(), ids, mask)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return zeros._replace(mask=np.ones_like(zeros.mask))


def null_output(encoder: TextEncoder, params: Params) -> Encoded:
    """One row: the encoder's output for no text, by its policy; on the host."""
    if encoder.null == "zeros":
        return blank_output(encoder)
    tokens = encoder.tokenize([""])
    sharding = next(iter(params.values())).sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    whole = replicated(mesh) if isinstance(mesh, Mesh) else None
    apply = jax.jit(encoder.apply, out_shardings=whole)
    return jax.device_get(apply(params, tokens["ids"], tokens["mask"]))
