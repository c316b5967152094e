"""Quality-tuning of a generator as it is: what `emu-jax import` has made of public weights, say.

    emu-jax import DeepFloyd/IF-I-XL-v1.0 --variant=fp16 --compute_dtype=bfloat16 --out=models/if1
    emu-jax train --config="configs/imported.py:models/if1" --workdir=runs/if1_tuned

The argument is the model's folder. Codec, texts, conditioner, denoiser, noise and how pictures are
drawn are as its config says; so a model of any kind and size needs no config of its own. Data and
stage are Emu's: the data set `folder/needles`, batch 64, noise offset 0.1 where there is noise, a
small constant rate, at most 15,000 steps.
"""

from ml_collections import ConfigDict

from emu_jax.checkpoint.foreign import blaming
from emu_jax.checkpoint.opened import open_model
from emu_jax.cli import haystack
from emu_jax.cli.config import source
from emu_jax.cli.models import locate
from emu_jax.errors import UserError

PARTS = ("codec", "low_codec", "text", "conditioner", "denoiser", "low_resolution")


@blaming("argument")
def get_config(argument: str | None = None) -> ConfigDict:
    if not argument:
        raise UserError("configs/imported.py takes a model's folder: configs/imported.py:FOLDER.")
    model = ConfigDict(open_model(locate(argument)).config)
    if model.get("task") != "generation":
        raise UserError(f"{argument} is no generator of pictures: its task is {model.get('task')}.")
    config = haystack.pretraining()
    config.groups = haystack.generator()
    if model.denoiser.kind == "mmdit":
        config.groups.generator.pattern = haystack.MMDIT
    haystack.quality_tune(config, argument, judge="")
    for name in (*PARTS, "process", "sampling"):
        if name in model:
            config[name] = model[name]
    config.compute_dtype = model.compute_dtype
    if "noise_offset" in config.process:
        config.process.noise_offset = 0.1
    if "remat" not in config.denoiser:  # an import says nothing of training
        config.denoiser.remat = "block"
    config.groups.generator.ema_decay = 0.9999
    config.groups.generator.optimizer.update(dict(learning_rate=1e-5, warmup=100, b2=0.999))
    config.data.update(dict(image_size=model.data.image_size, cache_text=True))
    config.data.train = dict(needles=source("folder/needles"))
    config.data.validation = dict()
    config.train.update(
        dict(steps=15_000, checkpoint_every=250, validate_every=0, preview_every=1000)
    )
    return config
