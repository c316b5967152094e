"""Damaged files of models, by chance: each is read, or refused in one sentence; no traceback.

Every file is changed in some place, by its entries and by its bytes, with a fixed seed.
"""

import copy
import json
import random
import shutil
from collections.abc import Iterator

import encoders
import numpy as np
import pipelines
import pytest

from emu_jax.checkpoint.adapters import FILE, read_adapter, write_adapter
from emu_jax.checkpoint.export import load_model, save_model
from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.gguf import open_gguf
from emu_jax.checkpoint.safetensors_io import iter_safetensors, open_safetensors, read_shapes
from emu_jax.errors import UserError
from emu_jax.interop import autoencoder, pixart, schedulers, sd3, unet, uvit, vq
from emu_jax.text.encoder import make_encoder

COUNT = 40  # changes of each kind to each file
VALUES = (
    *(None, True, 0, -1, 3, 10**30, 1.5, float("inf"), "", "x", "\ud800", [], {}, [1], ["a"]),
    *({"a": 1}, [[]]),
)


def places(value, path=()) -> Iterator[tuple]:
    """The path of every entry at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def changed(content: dict, chance: random.Random) -> dict:
    """An entry is gone, or something else, or one is new."""
    content = copy.deepcopy(content)
    *path, last = chance.choice([*places(content)])
    section = content
    for key in path:
        section = section[key]
    kind = chance.random()
    if kind < 0.25:
        del section[last]
    elif kind < 0.35 and isinstance(section, dict):
        section["novel"] = chance.choice(VALUES)
    else:
        section[last] = chance.choice(VALUES)
    return content


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut short, or a few bytes are others."""
    if chance.random() < 0.3:
        return data[: chance.randrange(len(data))]
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found)


def is_refused(read, *arguments) -> bool:
    """Whether a file is refused, in one sentence; any other exception fails the test."""
    try:
        read(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return True
    return False


def attack(file, read, count=COUNT) -> None:
    """``read()`` on every change of a JSON file."""
    whole, chance = file.read_bytes(), random.Random(file.name)
    content, refused = json.loads(whole), 0
    for _ in range(count):
        for data in (json.dumps(changed(content, chance)).encode(), damaged(whole, chance)):
            file.write_bytes(data)
            refused += is_refused(read)
    file.write_bytes(whole)
    assert not is_refused(read)
    assert refused > count // 4  # else the changes change nothing


CONFIG = {
    "task": "generation",
    "init_from": "",
    "codec": {"kind": "autoencoder", "path": "builtin:autoencoder_64"},
    "text": {"minilm": {"path": "", "length": 16}},
    "lora": {"rank": 2, "alpha": 1.0},
}


def test_the_config_of_a_model(tmp_path):
    meta = {"step": 1, "seed": 0, "frozen": {}, "source": {"unet": {}}}
    save_model(str(tmp_path), {"a": np.zeros(3, np.float32)}, CONFIG, meta)
    attack(tmp_path / "config.json", lambda: load_model(str(tmp_path)))


def test_the_header_of_tensors(tmp_path):
    file = tmp_path / "m.safetensors"
    save_model(str(tmp_path), {f"t{i}": np.ones((i, 3), np.float32) for i in range(3)}, {}, {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    length, chance = int.from_bytes(whole[:8], "little"), random.Random(0)
    header, refused = json.loads(whole[8 : 8 + length]), 0
    for _ in range(4 * COUNT):
        head = json.dumps(changed(header, chance)).encode()
        for data in (len(head).to_bytes(8, "little") + head, damaged(whole[: 8 + length], chance)):
            file.write_bytes(data + whole[8 + length :])
            for read in (iter_safetensors, open_safetensors):
                refused += is_refused(lambda read=read: dict(read(str(file))))
    assert refused > COUNT


def test_the_header_of_a_gguf_file(tmp_path):
    """Every count, length, size and offset, and whatever else, is too large once."""
    file, chance = tmp_path / "m.gguf", random.Random(0)
    metadata = {"general.alignment": 32, "a": "text", "b": [1, 2], "c": ["x", "y"], "d": 0.5}
    tensors = {f"t{kind}": encoders.quantized(kind, (2, 256), kind) for kind in (0, 3, 12)}
    encoders.gguf(file, metadata, tensors)
    whole, refused = file.read_bytes(), 0

    def read():
        dict(open_gguf(file).tensors)

    head = len(whole) - sum(len(data) + -len(data) % 32 for _, _, data in tensors.values())
    for start in range(head - 8):
        for value in (2**63, 2**40, 2**31, 0):
            file.write_bytes(whole[:start] + value.to_bytes(8, "little") + whole[start + 8 :])
            refused += is_refused(read)
    assert refused > head
    for _ in range(4 * COUNT):
        file.write_bytes(damaged(whole, chance))
        is_refused(read)
    file.write_bytes(whole)
    assert not is_refused(read)


def test_an_index_of_shards(tmp_path):
    encoders.clip_text(tmp_path, shard="5KB")
    attack(tmp_path / "model.safetensors.index.json", lambda: read_shapes(str(tmp_path)))


@pytest.mark.parametrize("write", [encoders.clip_text, encoders.clip_whole, encoders.t5])
def test_a_text_encoder_and_its_tokenizer(tmp_path, write):
    write(tmp_path)
    kind = "t5" if write is encoders.t5 else "clip"

    def read():
        encoder = make_encoder(kind, 8, path=tmp_path)
        encoder.tokenize(["a red fox", ""])
        dict(encoder.tensors())

    for file in sorted(tmp_path.glob("*.json")):
        if file.name != "generation_config.json":  # nobody reads it
            attack(file, read, count=6)


def test_the_config_and_the_factors_of_an_adapter(tmp_path):
    shapes = {"denoiser/a/kernel": np.zeros((4, 6))}
    factors = {
        "denoiser/a/lora_A/kernel": np.ones((4, 2), np.float32),
        "denoiser/a/lora_B/kernel": np.ones((2, 6), np.float32),
    }
    write_adapter(str(tmp_path), factors, 2.0, prefix="unet", dtype=np.float32)
    peft = tmp_path / "peft"
    peft.mkdir()
    shutil.copy(tmp_path / FILE, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2, "bias": "none"}))
    attack(peft / "adapter_config.json", lambda: read_adapter(str(peft), shapes))


@pytest.mark.parametrize(
    ("read", "config"),
    [
        (unet.arguments, unet.DEFAULTS | pipelines.UNETS["sdxl"]),
        (unet.arguments, unet.DEFAULTS | pipelines.IF_SUPER),
        (pixart.arguments, pixart.DEFAULTS | pipelines.PIXART),
        (sd3.arguments, sd3.DEFAULTS | pipelines.SD3),
        (uvit.arguments, uvit.DEFAULTS | pipelines.UVIT),
        (vq.sections, vq.DEFAULTS | pipelines.VQ),
        (autoencoder.arguments, autoencoder.DEFAULTS),
        (
            schedulers.latents,
            pipelines.NOISE | {"_class_name": schedulers.DDIM, "clip_sample": False},
        ),
        (schedulers.pixels, pipelines.IF_NOISE | {"_class_name": schedulers.DDPM}),
        (schedulers.flow, {"_class_name": schedulers.FLOW, "shift": 3.0}),
    ],
)
def test_public_settings(read, config):
    config, chance = json.loads(json.dumps(config)), random.Random(0)

    def imported(config):
        with described_by("pipeline"):
            read(config)

    assert not is_refused(imported, config)
    assert sum(is_refused(imported, changed(config, chance)) for _ in range(4 * COUNT)) > COUNT
