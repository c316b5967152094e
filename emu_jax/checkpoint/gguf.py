"""The GGUF file format of llama.cpp, versions 2 and 3, read tensor by tensor.

A file is a header, a table of metadata (key, type, value), a table of tensors (name, sizes with the
fastest first, kind of numbers, offset), and the tensors, little-endian. Config and tokenizer of the
model are metadata. Such a file is data from outside: every count and offset is checked against the
size of the file before anything is allocated, and nothing in it is executed.
"""

import math
import struct
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import MOST_BYTES, entry
from emu_jax.checkpoint.lazy import Lazy
from emu_jax.checkpoint.quantized import KINDS, Kind, dequantize
from emu_jax.errors import UserError

# The numbers among the types of metadata; an array is 9, a string 8.
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_STRING, _ARRAY = 8, 9
_AXES = 4
_LONGEST_NAME = 2**16
_LONGEST_SHOWN = 100


class Gguf(NamedTuple):
    """``metadata`` by key: bool, int, float, str, or a list or an array of one of these.
    ``tensors`` are read, in fp32 and torch's order of axes, on access.
    """

    metadata: dict[str, Any]
    tensors: Lazy


class _Place(NamedTuple):
    kind: Kind
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) // self.kind.values * self.kind.bytes


def open_gguf(path: str | epath.PathLike) -> Gguf:
    """Reads the header only.

    Raises:
      UserError: not a GGUF file, damaged, cut short, or with tensors of an unknown kind.
    """
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        raise UserError(f"There is no file {file}.")
    size = file.stat().length
    with file.open("rb") as stream:
        header = _Header(stream, size, str(file))
        if header.take(4, "the magic number") != b"GGUF":
            raise UserError(f"{file} is not a GGUF file.")
        version = header.number("<u4", "the version")
        if version not in (2, 3):
            raise UserError(f"{file} has version {version} of GGUF; only 2 and 3 are supported.")
        tensors = header.count("the number of tensors", least=24)
        entries = header.count("the number of entries", least=12)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = header.name("an entry's key")
            if key in metadata:
                raise UserError(f"{file} names the entry {_short(key)} twice; refused.")
            metadata[key] = header.value(key)
        places: dict[str, _Place] = {}
        for _ in range(tensors):
            name = header.name("a tensor's name")
            if name in places:
                raise UserError(f"{file} names the tensor {_short(name)} twice; refused.")
            places[name] = header.place(name)
        start = header.position
    # The tensors start on a multiple of this number of bytes.
    alignment = 32
    if "general.alignment" in metadata:
        alignment = entry(metadata, "general.alignment", int, file)
    if not 1 <= alignment <= _LONGEST_NAME:
        raise UserError(f"{file}: the entry 'general.alignment' is {alignment}, out of range.")
    start += -start % alignment
    for name, place in places.items():
        if place.offset + place.size > size - start:
            raise UserError(
                f"{file} is cut short or damaged: the tensor {_short(name)} ends at "
                f"byte {start + place.offset + place.size} of {size}; copy or fetch it again."
            )

    def read(name: str) -> np.ndarray:
        place = places[name]
        with file.open("rb") as stream:
            stream.seek(start + place.offset)
            return dequantize(stream.read(place.size), place.kind).reshape(place.shape)

    shapes = {
        name: jax.ShapeDtypeStruct(place.shape, np.dtype(np.float32))
        for name, place in places.items()
    }
    return Gguf(metadata, Lazy(shapes, read))


class _Header:
    """The tables at the start of a file, read in order; never beyond its end."""

    def __init__(self, stream: Any, size: int, file: str):
        self._stream, self._size, self._file = stream, size, file
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        self.position += size
        if self.position > min(self._size, MOST_BYTES):
            self._refuse(what)
        return self._stream.read(size)

    def number(self, code: str, what: str) -> Any:
        dtype = np.dtype(code)
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def count(self, what: str, least: int) -> int:
        """A number of things of at least ``least`` bytes each."""
        count = struct.unpack("<Q", self.take(8, what))[0]
        if count * least > self._size - self.position:
            self._refuse(f"{what}, {count},")
        return count

    def text(self, what: str, longest: int = MOST_BYTES) -> str:
        length = struct.unpack("<Q", self.take(8, what))[0]
        if length > min(longest, self._size - self.position):
            self._refuse(f"the length of {what}, {length},")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise UserError(f"{self._file} is damaged: {what} is not UTF-8.") from None

    def name(self, what: str) -> str:
        return self.text(what, _LONGEST_NAME)

    def value(self, key: str) -> Any:
        what = f"the entry {_short(key)}"
        kind = self.number("<u4", what)
        if kind != _ARRAY:
            return self._one(kind, what)
        kind = self.number("<u4", what)
        if kind not in _NUMBERS:
            count = self.count(f"the length of {what}", least=8)
            return [self._one(kind, what) for _ in range(count)]
        dtype = np.dtype(_NUMBERS[kind])
        count = self.count(f"the length of {what}", least=dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)

    def place(self, name: str) -> _Place:
        what = f"the tensor {_short(name)}"
        axes = self.number("<u4", what)
        if not 1 <= axes <= _AXES:
            raise UserError(f"{self._file} is damaged: {what} has {axes} axes.")
        sizes = struct.unpack(f"<{axes}Q", self.take(8 * axes, what))
        number, offset = self.number("<u4", what), self.number("<u8", what)
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise UserError(
                f"{self._file}: {what} is stored as kind {number} of numbers; only {known} are "
                "supported."
            )
        kind = KINDS[number]
        if 0 in sizes or math.prod(sizes) >= 2**56 or sizes[0] % kind.values:
            raise UserError(
                f"{self._file} is damaged: {what} has sizes {list(sizes)}, impossible for "
                f"{kind.name}."
            )
        return _Place(kind, sizes[::-1], offset)

    def _one(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind not in _NUMBERS:
            raise UserError(f"{self._file} is damaged: {what} has the unknown type {kind}.")
        return self.number(_NUMBERS[kind], what)

    def _refuse(self, what: str) -> None:
        raise UserError(
            f"{self._file} is cut short or damaged: {what} does not fit into its {self._size} "
            "bytes; copy or fetch it again."
        )


def _short(name: str) -> str:
    """A name for a message: a damaged length makes one of all that follows it."""
    text = repr(name)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."
