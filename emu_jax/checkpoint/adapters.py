"""Low-rank adapters in the public layouts: ``pytorch_lora_weights.safetensors``, and kohya's.

The first is the layout that diffusers' ``load_lora_weights`` and peft read. Every adapted module
has two factors, ``unet.<module>.lora_A.weight`` [rank, in] and ``lora_B.weight`` [out, rank]; for
transformers ``transformer.<module>``. There W' = W + (alpha / rank) B A. Files are written with
alpha = rank, which every reader assumes where no alpha is given.

Kohya's layout, which most published adapters have, joins the parts of a module's name by "_":
``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; for text encoders
``lora_te_``, ``lora_te1_`` and ``lora_te2_``. For Stable Diffusion XL modules often have the names
of the original layout (``input_blocks_4_1_...``).

Alpha is read from any of these places:

    <file's header>         unet.lora_alpha       diffusers' ``save_lora_weights``
    <file's header>         lora_alpha            diffusers' ``save_lora_adapter``
    unet.<module>.alpha                           beside the factors
    adapter_config.json     lora_alpha            peft's ``save_pretrained``, as ``_PEFT``
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from emu_jax.checkpoint.adapter_factors import ENDINGS, REFUSED, factors, fitted
from emu_jax.checkpoint.adapter_settings import Settings, read_settings
from emu_jax.checkpoint.foreign import parse_json, read_json
from emu_jax.checkpoint.safetensors_io import (
    fingerprint_params,
    iter_safetensors,
    read_metadata,
    write_safetensors,
)
from emu_jax.errors import UserError
from emu_jax.nn.lora import DOWN, UP, factor
from emu_jax.nn.stack import unstacked
from emu_jax.nn.torch_layout import from_layout, to_torch

FILE = "pytorch_lora_weights.safetensors"
FORMATS = ("diffusers", "kohya")
_PEFT, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# First part of a module's name in a file -> the network.
_NETWORKS = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "conditioner": "conditioner",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
# The same in kohya's layout, where the separator is "_".
_KOHYA = {
    "lora_unet_": "denoiser",
    "lora_transformer_": "denoiser",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
# How peft spells a factor, and how diffusers did over the years.
_SPELLINGS = (
    (r"^base_model\.model\.", ""),
    (r"\.processor\.", "."),
    (r"\.lora_linear_layer\.(?=down|up)", ".lora."),
    (r"\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.(\w+)_lora\.(?=down|up)", r".\1.lora."),
    (r"\.self_attn\.to_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.to_out\.0\.", ".self_attn.out_proj."),
    (r"\.lora\.down\.weight$", f".{DOWN}.weight"),
    (r"\.lora\.up\.weight$", f".{UP}.weight"),
)
_METADATA = "lora_adapter_metadata"


def write_adapter(
    folder: str,
    adapter: Mapping[str, Any],
    alpha: float,
    *,
    prefix: str,
    dtype: Any,
    format: str = "diffusers",
) -> None:
    """``adapter`` (as :class:`emu_jax.nn.lora.Lora` trains it) with its ``alpha``, which the layout
    of diffusers has no place for: there alpha / rank is multiplied into B.

    ``prefix`` stands for the denoiser: "unet" or "transformer".

    Raises:
      UserError: kohya's layout, and not only a U-Net is adapted.
    """
    named = {}
    for path, value in unstacked(adapter).items():
        host = np.asarray(value, np.float32)
        head, _, rest = path.partition("/")
        if format == "kohya" and (head, prefix) != ("denoiser", "unet"):
            raise UserError(
                f"The layout of kohya has names for U-Nets only, and this adapter has factors of "
                f"the {head if head != 'denoiser' else prefix}; use --format=diffusers."
            )
        if format == "diffusers" and f"/{UP}/" in path:
            host = host * (alpha / host.shape[-2])
        named[f"{prefix if head == 'denoiser' else head}/{rest}"] = host.astype(dtype)
    tensors = to_torch(named)
    if format == "kohya":
        tensors = _kohya(tensors, alpha)
    target = epath.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(str(target / FILE), tensors)


def _kohya(tensors: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """The tensors of a U-Net's adapter in kohya's names, each module with its alpha."""
    found = {}
    for name, value in tensors.items():
        for old, new in ((DOWN, "lora_down"), (UP, "lora_up")):
            module = name.removesuffix(f".{old}.weight")
            if module != name:
                flat = "lora_" + module.replace(".", "_")
                found[f"{flat}.{new}.weight"] = value
                found[f"{flat}.alpha"] = np.array(alpha, np.float32)
    return found


def read_adapter(
    path: str,
    shapes: Mapping[str, Any],
    original: Callable[[str], str] | None = None,
) -> tuple[dict[str, np.ndarray], str]:
    """(factors for a model of these ``shapes``, fingerprint); to be merged with a scale of 1.

    ``path``: a file, or a folder with one, also a folder of peft. ``shapes``: path -> anything with
    a shape, every layer under its own number: those of the generator, and of the text encoders
    under ``text_encoder/``, ``text_encoder_2/``, ... ``original``: the name of a denoiser's module
    in the original layout.

    Raises:
      UserError: an adapter of another model, or of a kind that is not supported, or damaged.
    """
    place = epath.Path(path).expanduser()
    if place.is_dir():
        place /= FILE if (place / FILE).exists() or not (place / _PEFT).exists() else _PEFT
    file = str(place)
    tensors = {_current(name): value for name, value in iter_safetensors(file)}
    for name in tensors:
        kind = next((kind for end, kind in REFUSED.items() if name.endswith(end)), None)
        if kind:
            raise UserError(
                f"{file} is {kind} ({name}), which is not supported: merge it into its base with "
                "the program that made it, and import the result."
            )
    if not any(name.endswith(end) for name in tensors for end in ENDINGS):
        raise UserError(
            f"{file} is not an adapter: no tensor is a factor, such as MODULE.{DOWN}.weight or "
            "lora_unet_MODULE.lora_down.weight."
        )
    settings, kernels = _settings(place), _spellings(shapes, original or (lambda name: name))
    adapter, unknown = {}, []
    for module, found in _modules(file, tensors):
        if module not in kernels:
            unknown.append(module)
            continue
        kernel, (head, name) = kernels[module], _split(module)
        shape = tuple(shapes[kernel].shape)
        made = fitted(factors(module, found, shape, file), shape)
        if made is None:
            raise UserError(
                f"{file}: the factors of {module} are of another size than this model's kernel "
                f"{list(shape)}."
            )
        scale = 1.0
        if made.rank is not None and made.alpha is not None:
            scale = made.alpha / made.rank
        elif made.rank is not None:
            own = settings.get(head) or settings.get("") or Settings()
            scale = own.scale(name, made.rank)
        a, b = factor(kernel, DOWN), factor(kernel, UP)
        adapter[a] = from_layout(a, made.down)
        adapter[b] = from_layout(b, made.up) * np.float32(scale)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"{file} adapts modules that this model does not have: {', '.join(unknown[:3])}{more}."
        )
    return adapter, fingerprint_params(tensors)


def _spellings(shapes: Mapping[str, Any], original: Callable[[str], str]) -> dict[str, str]:
    """Every name that a file may have for an adapted module -> its kernel."""
    found: dict[str, str] = {}
    for path in shapes:
        network, _, module = path.removesuffix("/kernel").replace("/", ".").partition(".")
        if not path.endswith("/kernel"):
            continue
        # Text encoders are saved with and without this prefix.
        names = {module, module.removeprefix("text_model.")}
        if network == "denoiser":
            found[module] = path  # the file of a single network need not name it
        for head, home in _NETWORKS.items():
            if home == network:
                found |= {f"{head}.{name}": path for name in names}
        if network == "denoiser":
            names |= {original(module)}
        for head, home in _KOHYA.items():
            if home == network:
                found |= {head + name.replace(".", "_"): path for name in names}
    return found


def _modules(
    file: str, tensors: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each module's name and its tensors by the names of ``ENDINGS``."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        end = next((end for end in ENDINGS if name.endswith(end)), None)
        if end is None:
            raise UserError(f"{file} contains {name}, which is not a factor of an adapter.")
        modules.setdefault(name.removesuffix(end), {})[ENDINGS[end]] = value
    yield from modules.items()


def _split(module: str) -> tuple[str, str]:
    """(network as the file names it, rest of the name); "" where it names none."""
    head, _, name = module.partition(".")
    return (head, name) if head in _NETWORKS else ("", module)


def _settings(file: epath.Path) -> dict[str, Settings]:
    """Network ("": the only one) -> its settings, where there are any."""
    if file.name == _PEFT:
        beside = file.parent / _PEFT_CONFIG
        if not beside.exists():
            raise UserError(f"{file} needs {_PEFT_CONFIG}, which is not in the same folder.")
        return {"": read_settings(read_json(beside), beside)}
    text = read_metadata(str(file)).get(_METADATA, "{}")
    found: dict[str, dict[str, Any]] = {}
    for name, value in parse_json(text.encode(), f"{_METADATA} in {file}").items():
        network, _, key = name.rpartition(".")
        found.setdefault(network, {})[key] = value
    return {network: read_settings(entries, file) for network, entries in found.items()}


def _current(name: str) -> str:
    for old, new in _SPELLINGS:
        name = re.sub(old, new, name)
    return name
