"""What a run keeps on its devices once its caches are made."""

import shutil
from functools import partial

import pytest
import runs
from etils import epath

from emu_jax.assembly.caches import _text
from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task, open_task
from emu_jax.assembly.training import make_trainer
from emu_jax.data.cache import Cache, stored
from emu_jax.errors import UserError
from emu_jax.parallel.mesh import make_mesh


@pytest.fixture
def config(pictures, tmp_path):
    """Pixels and a network of a few residual blocks, texts from a cache."""
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.codec = dict(kind="identity")
    config.denoiser.update(dict(widths=(8,), transformer_depth=0, mid_depth=0))
    config.data.update(dict(data_dir=str(pictures), cache_dir=str(tmp_path / "cache")))
    config.data.update(dict(cache_text=True, image_size=8))
    for sources in (config.data.train, *config.data.validation.values()):
        for source in sources.values():
            source.update(dict(dataset="folder/tiny", select=""))
    config.train.update(dict(steps=2, validate_every=2))
    return config


def test_what_is_cached_leaves_the_devices_and_trains_the_same(config, tmp_path):
    trainer = make_trainer(config, str(tmp_path / "run"))
    assert not trainer.frozen and list(trainer.meta["frozen"]) == ["minilm"]
    assert trainer.task.null["minilm"].states.any()  # what it says of no text was asked before
    assert trainer.run() == "done"
    lines = runs.lines(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) > 2

    config.data.cache_latents = True  # in pixel space: decoded pictures
    assert make_trainer(config, str(tmp_path / "cached")).run() == "done"
    assert runs.lines(tmp_path / "cached" / "metrics.jsonl") == lines
    kept = [stored(path, "8x8")["image"] for path in (tmp_path / "cache").glob("latents_*")]
    assert {(x.dtype.name, x.shape[1:]) for x in kept} == {("uint8", (8, 8, 3))}

    config.data.cache_text = False
    assert list(make_trainer(config, str(tmp_path / "online")).frozen) == ["minilm"]


def test_another_tokenizer_in_the_same_folder_makes_another_cache(config, pictures, tmp_path):
    folder = shutil.copytree(pictures / "text_encoder", tmp_path / "encoder")
    config.text.minilm.path = str(folder)
    encoder = make_task(config).encoders["minilm"]
    before = encoder.tokenizer_fingerprint
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    config.text.minilm.path = str(copied)
    assert make_task(config).encoders["minilm"].tokenizer_fingerprint == before
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[SEP]"}')
    assert encoder.tokenizer_fingerprint != before
    texts, network = ["", "a fox"], make_task(config).frozen["minilm"]
    made = []
    for path in (copied, folder):
        config.text.minilm.path = str(path)
        task, frozen = open_task(config, make_mesh())
        own = task.encoders["minilm"], frozen["minilm"]
        arguments = own[0], network, partial(tuple, own), texts
        made.append(_text(epath.Path(tmp_path), "minilm", *arguments))
    assert made[0].directory != made[1].directory
    with pytest.raises(UserError, match="is stale: tokenizer was"):
        Cache.open(made[0].directory, made[1].made_from, {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 60}, "data.image_size is 60, but a position of the latents or tokens has"),
        (
            {"buckets": True, "bucket_step": 12, "image_size": 48},
            "data.bucket_step is 12, but a position",
        ),
    ],
)
def test_an_image_size_that_the_codec_does_not_divide_is_refused(changes, sentence):
    config = read(f"{runs.ROOT}/configs/latent_diffusion.py:size=test")
    config.data.update(changes)
    with pytest.raises(UserError, match=sentence):
        make_task(config)
