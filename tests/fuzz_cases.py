"""The cases of ``tests/fuzz.py``: what is damaged, and how, for each kind of hostile input."""

import contextlib
import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from test_foreign_files import changed, damaged

ROOT = Path(__file__).parents[1]
# What a case must never read, and what it must never execute: its neighbours.
SECRET, HOSTILE = "secret", "hostile.py"
TEXTS = (
    *("0", "-1", "1" + 30 * "0", "nan", "inf", "", "nonsense", "(((", "(0,)", "(3,-1)", "None"),
    *("1", "2", "3", "8", "16", "0.5", "False", "True", "1e-9", "{'a': 1}", "\ud800", "a" * 5000),
    *("../secret", HOSTILE, "\x00", "builtin:x"),
)

Case = Callable[[Path, random.Random], list[str]]  # fills a new folder; a command line


@dataclass(frozen=True)
class Material:
    """Whole files of which cases are damaged copies: folders of the small runs of the tests."""

    home: Path  # for what a kind makes for itself
    data: Path  # with folder/tiny and its text_encoder
    autoencoder: Path
    generator: Path
    pipelines: tuple[str, ...] = ("sd15", "sdxl", "amused", "pixart", "shards")


# What is damaged -----------------------------------------------------------------------------


def anything(path: Path, chance: random.Random, links: bool = True) -> None:
    """Damages one file: its bytes, its entries if it is JSON, or what it is; with ``links``, also a
    link to another folder.
    """
    data, kind = path.read_bytes(), chance.random()
    if path.suffix == ".json" and kind < 0.6:
        with contextlib.suppress(ValueError, IndexError, TypeError):
            data = json.dumps(pointed(changed(json.loads(data), chance), chance)).encode()
    elif path.suffix == ".safetensors" and kind < 0.6:
        data = with_header(data, chance)
    elif kind < 0.9:
        data = damaged(data, chance) if data else b"\x00"
    path.unlink()
    if 0.9 <= kind < 0.93:
        path.mkdir()
    elif 0.93 <= kind < 0.96 and links:
        home = next(parent for parent in path.parents if (parent / SECRET).is_dir())
        path.symlink_to(home / SECRET / f"any{path.suffix}")
    elif kind < 0.96 or kind >= 0.98:
        path.write_bytes(data)


def pointed(value, chance: random.Random):
    """Now and then a text of a JSON value leads out of the folder, or to code."""
    if isinstance(value, dict):
        return {key: pointed(item, chance) for key, item in value.items()}
    if isinstance(value, list):
        return [pointed(item, chance) for item in value]
    if isinstance(value, str) and chance.random() < 0.01:
        return chance.choice((f"../{SECRET}", f"../{SECRET}/model.safetensors", HOSTILE))
    return value


def with_header(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(changed(json.loads(data[8 : 8 + length]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# Kinds -----------------------------------------------------------------------------------------


def configs(material: Material) -> Case:
    import runs

    from emu_jax.assembly.config import leaves, read

    names = {
        config: leaves(read(f"{ROOT}/configs/{config}.py:size=test"))
        for config in ("autoencoder", "latent_diffusion", "masked", "pixel_diffusion", "judge")
    }

    def case(folder: Path, chance: random.Random) -> list[str]:
        config = chance.choice([*names])
        more = [
            f"--config.{chance.choice(names[config])}={chance.choice(TEXTS)}"
            for _ in range(chance.choice((1, 1, 2)))
        ]
        codec = [f"--config.codec.path={material.autoencoder}"] * (config == "latent_diffusion")
        cache = f"--config.data.cache_dir={folder}/cache"
        return runs.command(config, folder / "run", material.data, *codec, cache, *more)

    return case


def captions(material: Material) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def sidecar(folder: Path, rows: list[dict]) -> Path:
        (folder / "0.txt").write_text("a red disc\na red ball\n")
        return folder / "0.txt"

    def lines(folder: Path, rows: list[dict]) -> Path:
        file = folder / "metadata.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def table(folder: Path, rows: list[dict]) -> Path:
        with (folder / "metadata.csv").open("w", newline="", errors="replace") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "novel"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return folder / "metadata.csv"

    def parquet(folder: Path, rows: list[dict]) -> Path:
        columns = {}
        for name in {name for row in rows for name in row}:
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
                columns[name] = pa.array([0] * len(rows))
        pq.write_table(pa.table(columns), folder / "metadata.parquet")
        return folder / "metadata.parquet"

    def case(folder: Path, chance: random.Random) -> list[str]:
        images = folder / "images"
        images.mkdir()
        rows = [{"file_name": f"{i}.png", "text": f"image {i}"} for i in range(2)]
        for row in rows:
            Image.new("RGB", (6, 4)).save(images / row["file_name"])
        if chance.random() < 0.5:
            rows = changed({"rows": rows}, chance).get("rows", [])
            rows = [row for row in rows if isinstance(row, dict)] if type(rows) is list else []
        if rows and chance.random() < 0.1:
            outside = (f"../../{SECRET}/image.png", f"{folder.parent}/{SECRET}/image.png", HOSTILE)
            rows[0]["file_name"] = chance.choice(outside)
        file = chance.choice((sidecar, lines, table, parquet))(images, rows)
        if chance.random() < 0.7:
            anything(file, chance, links=False)
        return ["data", "build", "folder/a", f"--path={images}", f"--data_dir={folder}/data"]

    return case


def images(material: Material) -> Case:
    """The bytes of one of two images."""
    whole = []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = (
        *(("RGB", "PNG", {"exif": exif}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("1", "PNG", {})),
        *(("RGB", "JPEG", {"exif": exif}), ("CMYK", "JPEG", {}), ("L", "JPEG", {})),
        *(("RGBA", "WEBP", {"exif": exif}), ("RGB", "BMP", {}), ("I;16", "TIFF", {})),
        *(("RGB", "TIFF", {"compression": "tiff_lzw"}), ("F", "TIFF", {}), ("RGB", "AVIF", {})),
        ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (16, 12), 3)]}),
    )
    for mode, form, options in saved:
        stream = io.BytesIO()
        first = picture.convert("L") if mode in ("I;16", "F") else picture
        with contextlib.suppress(OSError, KeyError, ValueError):  # of a Pillow without the format
            first.convert(mode).save(stream, form, **options)
            whole.append((form.lower(), stream.getvalue()))

    def case(folder: Path, chance: random.Random) -> list[str]:
        inside = folder / "images"
        inside.mkdir()
        form, data = chance.choice(whole)
        (inside / f"0.{form}").write_bytes(damaged(data, chance))
        if chance.random() < 0.5:
            Image.new("RGB", (6, 4)).save(inside / "1.png")
        if chance.random() < 0.05:
            anything(inside / f"0.{form}", chance, links=False)
        return ["data", "build", "folder/a", f"--path={inside}", f"--data_dir={folder}/data"]

    return case


def models(material: Material) -> Case:
    """A file of an exported model, or of a pipeline in diffusers' layout."""
    import encoders
    import pipelines

    from emu_jax.cli.main import main

    home = material.home / "models"
    ours, special = (
        home / "ours",
        dict(amused=pipelines.write_amused, pixart=pipelines.write_pixart),
    )

    def shards(home: Path) -> Path:
        folder = shutil.copytree(pipelines.write("sd15", home), home / "shards")
        shutil.rmtree(folder / "text_encoder")
        encoders.clip_text(folder / "text_encoder", shard="5KB")
        return folder

    if not ours.exists():
        home.mkdir()
        assert main(["export", str(material.generator), f"--out={ours}"]) == 0
    theirs = [home / name for name in material.pipelines]
    for folder in theirs:
        if not folder.exists():
            write = special.get(folder.name, partial(pipelines.write, folder.name))
            (shards if folder.name == "shards" else write)(home)

    def case(folder: Path, chance: random.Random) -> list[str]:
        if chance.random() < 0.5:
            shutil.copytree(ours, folder / "model")
            anything(chance.choice(files_of(folder / "model")), chance)
            if chance.random() < 0.2:
                return ["sample", "a fox", f"--checkpoint={folder}/model", f"--out={folder}/out"]
            return ["export", f"{folder}/model", f"--out={folder}/out"]
        shutil.copytree(chance.choice(theirs), folder / "model")
        for _ in range(chance.choice((1, 1, 2))):
            anything(chance.choice(files_of(folder / "model")), chance)
        return ["import", f"{folder}/model", f"--out={folder}/out"]

    return case


def checkpoints(material: Material) -> Case:
    """A file of a run's checkpoints, opened to draw, to export or to go on training."""
    import runs

    def case(folder: Path, chance: random.Random) -> list[str]:
        run, draws = folder / "run", chance.random() < 0.1
        source = material.generator if draws else material.autoencoder
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("tensorboard"))
        files = files_of(run)
        anything(chance.choice(files), chance)
        if chance.random() < 0.1:
            victim = chance.choice([path for path in run.rglob("*") if path.is_dir()])
            shutil.rmtree(victim)
        if draws:
            return ["sample", "a fox", f"--checkpoint={run}", f"--out={folder}/out"]
        if chance.random() < 0.5:
            return ["export", str(run), f"--out={folder}/out"]
        return runs.command("autoencoder", run, material.data, "--config.train.steps=8")

    return case


def tokenizers(material: Material) -> Case:
    """A file of a text encoder's folder that a run is started with."""
    import encoders
    import runs

    home = material.home / "encoders"
    folders = {material.data / "text_encoder": "minilm"}
    for write in (encoders.clip_text, encoders.clip_whole, encoders.t5):
        if not (home / write.__name__).exists():
            write(home / write.__name__)
        folders[home / write.__name__] = "t5" if write is encoders.t5 else "clip"

    def case(folder: Path, chance: random.Random) -> list[str]:
        source, kind = chance.choice([*folders.items()])
        shutil.copytree(source, folder / "text")
        found = [path for path in files_of(folder / "text") if path.suffix != ".safetensors"]
        anything(chance.choice(found), chance)
        text = (f"kind={kind}", f"path={folder}/text", "length=8")
        return runs.command(
            *("pixel_diffusion:part=base", folder / "run", material.data),
            *(f"--config.text.minilm.{setting}" for setting in text),
        )

    return case


def adapters(material: Material) -> Case:
    """The file of a text adapter, ours or its authors', or of a LoRA adapter, with which the small
    generator draws.
    """
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    from emu_jax.checkpoint.export import load_model
    from emu_jax.checkpoint.text_adapters import PREFIX, write_text_adapter
    from emu_jax.cli.main import main
    from emu_jax.nn.functional import Network
    from emu_jax.nn.text_adapter import TextAdapter

    home, draw = material.home / "adapters", np.random.default_rng(0).normal
    if not home.exists():
        home.mkdir()
        assert main(["export", str(material.generator), f"--out={home}/model"]) == 0
        model = load_model(str(home / "model"))
        width = json.loads((material.data / "text_encoder" / "config.json").read_text())
        network = Network(
            lambda rngs: TextAdapter(width["hidden_size"], heads=2, hidden=8, layers=1, rngs=rngs)
        )
        params = {
            f"{PREFIX}/minilm/{path}": draw(size=x.shape).astype(np.float32)
            for path, x in network.shapes().items()
        }
        options = dict(heads=2, eta=0.1, on_null=True)
        write_text_adapter(f"{home}/text.safetensors", params, options)
        own = load_file(home / "text.safetensors")
        state = {name.removeprefix("minilm."): x for name, x in own.items()}
        torch.save(state, home / "text.pt")
        factors = {}
        for path, x in model.params.items():
            if path.startswith("denoiser/") and path.endswith("/kernel") and x.ndim == 2:
                module = path.removesuffix("/kernel").replace("/", ".")
                factors[f"{module}.lora_A.weight"] = draw(size=(2, x.shape[0])).astype(np.float32)
                factors[f"{module}.lora_B.weight"] = draw(size=(x.shape[1], 2)).astype(np.float32)
        save_file(factors, home / "lora.safetensors")

    def case(folder: Path, chance: random.Random) -> list[str]:
        file = folder / chance.choice(("text.safetensors", "text.pt", "lora.safetensors"))
        shutil.copy(home / file.name, file)
        anything(file, chance)
        option = "adapter" if file.stem == "lora" else "text_adapter"
        whole = ["sample", "a fox", f"--checkpoint={home}/model", f"--{option}={file}"]
        return [*whole, f"--out={folder}/out"]

    return case


KINDS = {
    make.__name__: make
    for make in (configs, captions, images, models, checkpoints, tokenizers, adapters)
}
