"""Files of text adapters (:mod:`emu_jax.nn.text_adapter`): our own, and those of its authors.

Our file is one safetensors file. Its tensors have the names of the authors' module after the name
of the text encoder that they adapt, ``clip.transformer_encoder.layers.0.linear1.weight``, and
torch's layout. Its metadata say the rest:

    kind       sur_adapter
    encoders   {"clip": 768}, name and width of every adapted text encoder, as JSON
    heads      of the transformer layers
    eta        share of the adapter in the states
    on_null    true, or false where the null text is not adapted

The authors' file is a ``.pt`` of one module without any settings; those of their script are taken.
Only its tensors are read. Two parts of their module take no part in its output and are left out by
name; any other tensor that is unknown is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from emu_jax.checkpoint.foreign import described_by, entry, parse_json
from emu_jax.checkpoint.safetensors_io import (
    cast_floats,
    fingerprint_params,
    iter_safetensors,
    read_metadata,
    write_safetensors,
)
from emu_jax.errors import UserError
from emu_jax.nn.functional import Network, subtree
from emu_jax.nn.pickles import read_pickle
from emu_jax.nn.text_adapter import PREFIX, TextAdapter
from emu_jax.nn.torch_layout import from_layout, shape_to_layout, to_torch, torch_key

Arrays = dict[str, np.ndarray]  # by path
FILE = "text_adapter.safetensors"
SUFFIXES = (".safetensors", ".pt")
_KIND = "sur_adapter"
# Our names with torch's separator -> the authors'. The first that matches is taken.
_NAMES = (
    (r"layers\.(\d+)\.in_proj\.", r"transformer_encoder.layers.\1.self_attn.in_proj_"),
    (r"layers\.(\d+)\.out_proj\.", r"transformer_encoder.layers.\1.self_attn.out_proj."),
    (r"layers\.(\d+)\.", r"transformer_encoder.layers.\1."),
    (r"query\.", "attention.query_layer."),
    (r"key\.", "attention.key_layer."),
    (r"linear1\.", "attention.output_layer.0."),
    (r"linear2\.", "attention.output_layer.2."),
    (r"gate\.", "fc."),
)
# Of the authors' module: the layer that the others were copied from, and values that are not read.
_UNUSED = {
    *(f"encoder_layer.self_attn.in_proj_{leaf}" for leaf in ("weight", "bias")),
    *(
        f"encoder_layer.{part}.{leaf}"
        for part in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
        for leaf in ("weight", "bias")
    ),
    *(f"attention.value_layer.{leaf}" for leaf in ("weight", "bias")),
}
_LAYER = re.compile(r"transformer_encoder\.layers\.(\d+)\.linear1\.weight")
_MOST_LAYERS = 100


@dataclass(frozen=True)
class TextAdapterFile:
    """``params`` by text encoder, and ``widths`` of its states; "" is the encoder of a file that
    names none. ``options``: layers, heads, hidden, eta, on_null.
    """

    params: Mapping[str, Arrays]
    widths: Mapping[str, int]
    options: Mapping[str, Any]
    fingerprint: str


def write_text_adapter(
    file: str,
    params: Mapping[str, Any],
    options: Mapping[str, Any],
    dtype: Any = None,
    **recorded: str,
) -> None:
    """Writes the parameters under :data:`PREFIX`. ``options`` are heads, eta and on_null;
    ``recorded`` are further texts for the metadata.
    """
    own = subtree(dict(params), PREFIX)
    names = sorted({path.partition("/")[0] for path in own})
    tensors, widths = {}, {}
    for name in names:
        found = {path: np.asarray(x) for path, x in subtree(own, name).items()}
        widths[name] = found["gate/bias"].shape[0]
        cast = {path: cast_floats(x, dtype) for path, x in found.items()}
        tensors |= {f"{name}.{_published(key)}": x for key, x in to_torch(cast).items()}
    epath.Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        file,
        dict(sorted(tensors.items())),
        {
            "kind": _KIND,
            "encoders": json.dumps(widths),
            "heads": str(options["heads"]),
            "eta": repr(float(options["eta"])),
            "on_null": "true" if options["on_null"] else "false",
            **recorded,
        },
    )


def read_text_adapter(path: str) -> TextAdapterFile:
    """The adapters in a file.

    Raises:
      UserError: no such file, not a text adapter, or damaged.
    """
    if path.endswith(".pt"):
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"There is no text adapter {file}.")
        found = {
            name.removeprefix("module."): x.float().numpy() for name, x in read_pickle(file).items()
        }
        tensors = {name: x for name, x in found.items() if name not in _UNUSED}
        settings: dict[str, Any] = dict(heads=8, eta=0.1, on_null=True)
        encoders: dict[str, Any] = {"": None}
    else:
        path = str(epath.Path(path).expanduser())
        tensors = dict(iter_safetensors(path))
        settings, encoders = _settings(path)
    params, widths, sizes = {}, {}, {}
    for name in encoders:
        head = f"{name}." if name else ""
        own = {key[len(head) :]: x for key, x in tensors.items() if key.startswith(head)}
        for key in own:
            tensors.pop(head + key)
        with described_by(path):
            params[name], widths[name], sizes[name] = _module(own, settings["heads"], path)
        if encoders[name] not in (None, widths[name]):
            raise UserError(
                f"{path} says that {name} is {encoders[name]} wide, but its tensors are "
                f"{widths[name]} wide; export it again."
            )
    if tensors:
        raise UserError(f"{path} has {next(iter(tensors))}, which no text adapter has.")
    first, *others = sizes.values()
    if any(size != first for size in others):
        raise UserError(f"{path} has adapters of different depths, which is not supported.")
    every = {f"{name}/{key}": x for name, own in params.items() for key, x in own.items()}
    options = settings | dict(zip(("layers", "hidden"), first, strict=True))
    return TextAdapterFile(params, widths, options, fingerprint_params(every))


def _settings(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(heads, eta and on_null; name -> width) of our file's metadata."""
    found = read_metadata(path)
    if found.get("kind") != _KIND:
        raise UserError(
            f"{path} is not a text adapter: its metadata say no kind={_KIND}; LoRA files are for "
            "--adapter."
        )
    with described_by(path):
        heads, eta = int(found["heads"]), float(found["eta"])
        on_null = {"true": True, "false": False}[found["on_null"]]
        encoders = parse_json(found["encoders"].encode(), f"The entry encoders of {path}")
    for name in encoders:
        entry(encoders, name, int, path)
    if heads < 1 or not 0 <= eta <= 1 or not encoders or not all(encoders):
        raise UserError(f"{path} is damaged: heads={heads}, eta={eta}, encoders={encoders}.")
    return dict(heads=heads, eta=eta, on_null=on_null), encoders


def _module(
    tensors: Mapping[str, np.ndarray], heads: int, path: str
) -> tuple[Arrays, int, tuple[int, int]]:
    """(parameters, width, (layers, width of the feed-forward networks)) of one adapter."""
    gate = tensors.get("fc.bias")
    layers = [int(match[1]) for match in map(_LAYER.fullmatch, tensors) if match]
    if gate is None or gate.ndim != 1 or not layers or max(layers) >= _MOST_LAYERS:
        raise UserError(f"{path} is not a text adapter: it lacks fc.bias or {_LAYER.pattern}.")
    width, depth = len(gate), max(layers) + 1
    hidden = len(tensors[f"transformer_encoder.layers.{min(layers)}.linear1.weight"])
    shapes = Network(
        lambda rngs: TextAdapter(width, layers=depth, heads=heads, hidden=hidden, rngs=rngs)
    ).shapes()
    wanted = {_published(torch_key(own)): own for own in shapes}
    for name in sorted(tensors.keys() ^ wanted.keys()):
        if name in tensors:
            raise UserError(f"{path} has {name}, which no text adapter has.")
        raise UserError(f"{path} lacks {name} of a text adapter of {depth} layers; fetch it again.")
    params: Arrays = {}
    for name, own in wanted.items():
        shape = shape_to_layout(own, tuple(shapes[own].shape))
        if tensors[name].shape != shape:
            raise UserError(
                f"{path} has {name} of shape {list(tensors[name].shape)}; {list(shape)} belongs to "
                f"a width of {width}."
            )
        if not all(map(math.isfinite, (tensors[name].min(), tensors[name].max()))):
            raise UserError(f"{path} has numbers in {name} that are not finite.")
        params[own] = from_layout(own, tensors[name].astype(np.float32))
    return params, width, (depth, hidden)


def _published(key: str) -> str:
    """The authors' name of the tensor that is ``key`` here."""
    for pattern, name in _NAMES:
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", name, key)
    raise ValueError(f"a text adapter has no {key}")
