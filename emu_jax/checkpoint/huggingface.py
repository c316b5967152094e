"""Models as the Hugging Face libraries keep them: a folder with config.json and safetensors.

A folder is given by its path or by its name on the hub, OWNER/NAME or OWNER/NAME/SUBFOLDER; a hub
model is fetched once, into the hub client's own cache. Weights are streamed: headers say whether
everything is there, then one tensor at a time is read, cast and turned into our layout.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.checkpoint.foreign import entry, read_json
from emu_jax.checkpoint.paths import refuse_links_out
from emu_jax.checkpoint.safetensors_io import cast_floats, iter_safetensors, read_shapes
from emu_jax.errors import UserError
from emu_jax.nn.torch_layout import from_layout, torch_paths

# The parts of a public model that we read; the same weights in other formats lie beside them.
_WANTED = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")


def find_folder(path: str | Path, weights: bool = True) -> Path:
    """The folder at ``path``, or the hub's model of that name, fetched unless it is in the cache;
    without ``weights`` only what is small.

    Raises:
      UserError: there is no such folder, and the hub does not give it; or a file in it is a link
        out of it.
    """
    if Path(path).is_dir():
        refuse_links_out(Path(path))
        return Path(path)
    subfolder = "/".join(str(path).split("/")[2:])
    folders = {subfolder, tokenizer_folder_of(subfolder)}
    wanted = [file for file in _WANTED if weights or not file.endswith(".safetensors")]
    return _fetch(path, [f"{f}/{file}" if f else file for f in folders for file in wanted], [])


def find_pipeline(path: str | Path, variant: str = "", pickle: bool = False) -> Path:
    """The same of a whole pipeline, or of a component: only the weights of ``variant`` ("": the
    plain ones) are fetched, pickles where asked for.
    """
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    subfolder = "/".join(str(path).split("/")[2:])
    return _fetch(path, *pipeline_patterns(subfolder, variant, pickle))


def pipeline_patterns(subfolder: str, variant: str, pickle: bool) -> tuple[list[str], list[str]]:
    """Which of a hub model's files a pipeline, or one component in ``subfolder``, is read from:
    (patterns of wanted files, of those among them that are not).
    """
    head = f"{subfolder}/" if subfolder else "*"
    names = [f".{variant}", f".{variant}-*"] if variant else [""]
    kinds = [".safetensors", *([".bin"] if pickle else [])]
    ends = [name + kind for name in names for kind in kinds]
    stems = ("model", "diffusion_pytorch_model", "pytorch_model")
    wanted = [f"{head}{stem}*{end}" for stem in stems for end in ends]
    wanted += ["model_index.json", *(f"{head}*{end}" for end in (".json", ".txt", ".model"))]
    # A variant's name stands between two dots.
    others = [] if variant else ["*model.*.safetensors", "*model.*.bin"]
    return wanted, ["safety_checker/*", "watermarker/*", *others]


def _fetch(path: str | Path, wanted: list[str], unwanted: list[str]) -> Path:
    parts = str(path).split("/")
    owner_and_name, subfolder = parts[:2], "/".join(parts[2:])
    if len(parts) < 2 or not all(parts[:2]) or str(path)[0] in "./~" or ".." in parts:
        raise UserError(f"There is no folder {path}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot = snapshot_download(
            "/".join(owner_and_name), allow_patterns=wanted, ignore_patterns=unwanted
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{path} is no local folder, and the hub does not give it "
            f"({type(error).__name__}): fetch it where there is a network, or name a folder."
        ) from error
    folder = Path(snapshot, subfolder)
    if not folder.is_dir():
        raise UserError(f"{path} is no local folder, and the hub's model has no {subfolder}.")
    return folder


def tokenizer_folder_of(name: str) -> str:
    """Where a pipeline keeps the tokenizer of its text encoder ``name``: text_encoder_2 ->
    tokenizer_2. Any other folder holds its own.
    """
    return name.replace("text_encoder", "tokenizer")


def read_config(folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """A folder's config.json, whose ``model_type`` must be one of ``kinds``."""
    file = folder / "config.json"
    config = read_json(file)
    kind = entry(config, "model_type", str, file)
    if kind not in kinds:
        raise UserError(f"{folder} holds a model of type {kind}; wanted is {' or '.join(kinds)}.")
    return config


def weights_of(folder: Path) -> Path:
    """The folder's model.safetensors, else the folder, whose index names the shards."""
    single = folder / "model.safetensors"
    return single if single.is_file() else folder


def stream_params(
    weights: Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    dtype: Any,
    rename: Callable[[str], str | None] = lambda key: key,
) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of every parameter in ``shapes``, in the order of the files.

    ``rename`` gives a file's key in the spelling of our network, None for what is not ours. Where
    the file holds a tensor under an old and under the current spelling, the current one is read.

    Raises:
      UserError: at once, before any tensor is read, where keys are unknown, missing or misshapen.
    """
    headers = read_shapes(str(weights))
    chosen: dict[str, str] = {}
    for key in headers:
        ours = rename(key)
        if ours is not None and (ours not in chosen or key == ours):
            chosen[ours] = key
    try:
        spelling = torch_paths({ours: headers[key] for ours, key in chosen.items()}, shapes)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None
    paths = {key: spelling[ours] for ours, key in chosen.items()}

    def convert(item: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
        path = paths[item[0]]
        return path, from_layout(path, cast_floats(item[1], dtype))

    # A map keeps no tensor once it is handed over; a loop's variable would.
    return map(convert, iter_safetensors(str(weights), keep=paths.__contains__))
