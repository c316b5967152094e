"""What a run keeps on its devices once its caches are made."""

import numpy as np
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.training import make_trainer


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
    kept = [np.load(path) for path in (tmp_path / "cache").glob("latents_*/8x8/image.npy")]
    assert {(x.dtype.name, x.shape[1:]) for x in kept} == {("uint8", (8, 8, 3))}

    config.data.cache_text = False
    assert list(make_trainer(config, str(tmp_path / "online")).frozen) == ["minilm"]
