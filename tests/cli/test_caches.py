"""What a run keeps on its devices once its caches are made."""

import pytest
import runs

from emu_jax.cli.config import read
from emu_jax.cli.train import build


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


def test_an_encoder_whose_texts_are_cached_leaves_the_devices(config, tmp_path):
    trainer = build(config, str(tmp_path / "run"))
    assert not trainer.frozen and list(trainer.meta["frozen"]) == ["minilm"]
    assert trainer.task.null["minilm"].states.any()  # what it says of no text was asked before
    assert trainer.run() == "done"
    assert len(runs.lines(tmp_path / "run" / "metrics.jsonl")) > 2
    config.data.cache_text = False
    assert list(build(config, str(tmp_path / "online")).frozen) == ["minilm"]
