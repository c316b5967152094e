"""The safetensors file format, read and written tensor by tensor.

A file is 8 bytes (little-endian length n), n bytes of JSON (name -> dtype, shape, byte range), then
the bytes of the tensors, row-major. A large model is a folder of such files with an index that maps
names to files. At most one tensor is in memory at a time, so a frozen encoder is read from disk
into its shards without being whole in any host's memory.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import jax
import ml_dtypes
import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import entry, parse_json, read_json
from emu_jax.checkpoint.lazy import Lazy, shapes_of
from emu_jax.checkpoint.paths import file_in
from emu_jax.errors import UserError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_DTYPES = {code: np.dtype(dtype) for code, dtype in _DTYPES.items()}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def iter_safetensors(
    path: str, keep: Callable[[str], bool] = lambda name: True, by_name: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a file, or of a folder (sharded with an index, or one file in it).

    The order in a file is that of the disk, or of the names (``by_name``). Tensors that ``keep``
    refuses are not read.

    Raises:
      UserError: no such file, not safetensors, cut short, or a shard of the index is missing.
    """
    for file in safetensors_files(path):
        with _open(file) as stream:
            header, start = _read_header(file, stream)
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            for name, entry in sorted(entries) if by_name else entries:
                if keep(name):
                    begin, end = entry["data_offsets"]
                    stream.seek(start + begin)
                    yield name, _tensor(stream.read(end - begin), entry)


def read_shapes(path: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype by name; reads only the headers."""
    shapes = {}
    for file in safetensors_files(path):
        with _open(file) as stream:
            for name, entry in _read_header(file, stream)[0].items():
                dtype = _DTYPES[entry["dtype"]]
                shapes[name] = jax.ShapeDtypeStruct(tuple(entry["shape"]), dtype)
    return shapes


def open_safetensors(path: str) -> Lazy:
    """The tensors of a file or a folder, each read on access; in the order of the files."""
    places: dict[str, tuple[epath.Path, int, dict[str, Any]]] = {}
    for file in safetensors_files(path):
        with _open(file) as stream:
            header, start = _read_header(file, stream)
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            places[name] = file, start, tensor

    def read(name: str) -> np.ndarray:
        file, start, entry = places[name]
        begin, end = entry["data_offsets"]
        with _open(file) as stream:
            stream.seek(start + begin)
            return _tensor(stream.read(end - begin), entry)

    shapes = {
        name: jax.ShapeDtypeStruct(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
        for name, (_, _, entry) in places.items()
    }
    return Lazy(shapes, read)


def read_metadata(path: str) -> dict[str, str]:
    """The metadata in the header of one file; {} if there are none."""
    file = epath.Path(path)
    with _open(file) as stream:
        _read_header(file, stream)  # refuses other files
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(length), f"The header of {file}")
        return header.get("__metadata__", {})


def write_safetensors(
    path: str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one file atomically: a temporary file beside it is renamed at the end.

    For a :class:`Lazy` one tensor at a time is in memory. ``metadata`` goes into the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in shapes_of(tensors).items():
        code = _CODES.get(np.dtype(tensor.dtype))
        if code is None:
            raise UserError(f"{name} is {tensor.dtype}, which safetensors has no name for.")
        end = offset + math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        shape = list(tensor.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # The tensors start on a multiple of 8.
    target = epath.Path(path)
    temporary = target.parent / f"{target.name}.tmp"
    with temporary.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little"))
        stream.write(head)
        for name in tensors:
            stream.write(np.ascontiguousarray(tensors[name]).tobytes())
    temporary.replace(target)


def place(
    tensors: Iterable[tuple[str, np.ndarray]],
    shardings: Mapping[str, jax.sharding.Sharding],
    dtype: Any = None,
) -> dict[str, jax.Array]:
    """Puts each tensor directly into its shards, one at a time; floats as ``dtype`` if given.

    Raises:
      UserError: a tensor without a sharding, or a sharding without a tensor.
    """
    placed: dict[str, jax.Array] = {}
    for name, tensor in tensors:
        if name not in shardings:
            raise UserError(f"The file holds {name}, for which the network has no parameter.")
        host = cast_floats(tensor, dtype)
        placed[name] = jax.make_array_from_callback(
            host.shape, shardings[name], lambda index, host=host: host[index]
        )
        # Otherwise the host would run ahead and hold many tensors during their transfer.
        placed[name].block_until_ready()
        del tensor, host  # they would stay in memory while the next one is read
    missing = [name for name in shardings if name not in placed]
    if missing:
        raise UserError(f"The file lacks {len(missing)} parameters, such as {missing[0]}.")
    return placed


def cast_floats(tensor: Any, dtype: Any) -> Any:
    """``tensor`` as ``dtype`` if it is floating-point and a dtype is given."""
    if dtype is None or not jax.numpy.issubdtype(tensor.dtype, np.floating):
        return tensor
    return tensor.astype(dtype, copy=False)


# Fingerprints ------------------------------------------------------------------------------------


def fingerprint(path: str) -> str:
    """The sha256 of a safetensors file, or of a sharded folder's files in order (hexadecimal)."""
    digests = []
    for file in safetensors_files(path):
        stat = file.stat()
        digests.append(_file_digest(str(file), stat.length, stat.mtime))
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def fingerprint_params(params: Mapping[str, Any]) -> str:
    """The sha256 of names, dtypes, shapes and bytes, whatever the container."""
    digest = Digest()
    for name in sorted(params):
        digest.add(name, np.asarray(params[name]))
    return digest.hexdigest()


class Digest:
    """:func:`fingerprint_params` of arrays that come one at a time, in the order of their names."""

    def __init__(self):
        self._sha, self._last = hashlib.sha256(), ""

    def add(self, name: str, value: np.ndarray) -> None:
        if name <= self._last:
            raise ValueError(f"{name} comes after {self._last}: another order is another digest")
        self._last = name
        self._sha.update(f"{name} {value.dtype} {value.shape}\n".encode())
        self._sha.update(value.tobytes())

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: str, size: int, mtime: int) -> str:
    del size, mtime  # Keys of the cache: a file that has changed is read again.
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# Files -------------------------------------------------------------------------------------------


def safetensors_files(path: str) -> list[epath.Path]:
    """The file at ``path``, the files of an index, or those of a folder: the files of its index, or
    its only file.
    """
    root = epath.Path(path)
    if not root.exists():
        raise UserError(f"There is nothing at {root}.")
    if not root.is_dir():
        return _indexed(root) if root.suffix == ".json" else [root]
    indices = sorted(root.glob("*.safetensors.index.json"))
    files = sorted(root.glob("*.safetensors"))
    if len(indices) == 1:
        return _indexed(indices[0])
    if len(files) == 1:
        return files
    if not files:
        raise UserError(f"There is no .safetensors file in {root}.")
    names = ", ".join(file.name for file in files[:3])
    raise UserError(f"{root} holds several models ({names}); name the file.")


def _indexed(index: epath.Path) -> list[epath.Path]:
    names = entry(read_json(index), "weight_map", dict, index).values()
    files = {str(name): file_in(index.parent, name, index) for name in names}
    return [files[name] for name in sorted(files)]


def _open(file: epath.Path):
    try:
        return file.open("rb")
    except PermissionError:
        raise UserError(f"{file} may not be read; change its permissions.") from None


def _read_header(file: epath.Path, stream: Any) -> tuple[dict[str, dict[str, Any]], int]:
    size = file.stat().length
    length = int.from_bytes(stream.read(8), "little")
    # A header is far below 100 MB in any real model; a wild length means another kind of file.
    if size < 8 or length > 100_000_000:
        raise UserError(f"{file} is not a safetensors file, or is cut short at {size} bytes.")
    if size < 8 + length:
        raise UserError(f"{file} is cut short at {size} bytes; copy or fetch it again.")
    header = parse_json(stream.read(length), f"The header of {file}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise UserError(f"{file} is damaged: its __metadata__ is not texts by name.")
    broken = [name for name, tensor in header.items() if not _consistent(tensor)]
    if broken:
        raise UserError(f"{file} is damaged: the entry of {broken[0]} contradicts itself.")
    whole = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size < whole:
        raise UserError(
            f"{file} is cut short: {size} of {whole} bytes are there; copy or fetch it again."
        )
    return header, 8 + length


def _consistent(tensor: Any) -> bool:
    """Whether a header's entry has a dtype, a shape and the number of bytes that they need."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("dtype"), str):
        return False
    dtype, shape, offsets = tensor["dtype"], tensor.get("shape"), tensor.get("data_offsets")
    if dtype not in _DTYPES or not _are_sizes(shape):
        return False
    if not _are_sizes(offsets) or len(offsets) != 2:
        return False
    # numpy's arrays have at most 64 axes, and count their bytes in 63 bits even where one is 0.
    if len(shape) > 32 or math.prod(n or 1 for n in shape) >= 2**56:
        return False
    return offsets[1] - offsets[0] == _DTYPES[dtype].itemsize * math.prod(shape)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _tensor(data: bytes, entry: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(data, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
