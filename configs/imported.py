"""Quality-tuning of a whole generator, e.g. one that `emu-jax import` made of public weights.

    emu-jax import DeepFloyd/IF-I-XL-v1.0 --variant=fp16 --compute_dtype=bfloat16 --out=models/if1
    emu-jax train --config="configs/imported.py:models/if1,data=folder/mine" --workdir=runs/if1

The argument is the model's folder. Codec, text encoders, conditioner, denoiser, process and
sampling are those of its config, so that a model of any kind and size needs no config of its own.
Training is Emu's: batch 64, noise offset 0.1 of a Gaussian process, a small constant learning rate,
at most 15,000 steps. data=folder/mine is the data set of the user, by default `folder/needles`. A
tenth of its images is held out for validation (docs/data.md).

    hardware, time, result  not measured
"""

from ml_collections import ConfigDict

from emu_jax.assembly import stages
from emu_jax.assembly.models import locate
from emu_jax.assembly.sections.runs import complete
from emu_jax.checkpoint.foreign import blaming
from emu_jax.checkpoint.opened import open_model
from emu_jax.errors import UserError

PARTS = (
    "codec",
    "low_codec",
    "low_resolution",
    "text",
    "conditioner",
    "adapter",
    "denoiser",
    "process",
    "sampling",
)


@blaming("argument")
def get_config(argument: str | None = None) -> ConfigDict:
    argument, _, dataset = (argument or "").partition(",data=")
    if not argument:
        raise UserError("configs/imported.py needs a model's folder: configs/imported.py:FOLDER.")
    stored = open_model(locate(argument)).config
    if stored.get("task") != "generation":
        raise UserError(f"{argument} is not a generator; its task is {stored.get('task')}.")
    model, config = complete(stored), stages.generation()
    config.groups = stages.generator(b2=0.999)
    if model.denoiser.kind == "mmdit":
        config.groups.generator.pattern = stages.MMDIT
    for name in PARTS:
        if name in model:
            config[name] = model[name]
    if config.process.kind == "gaussian":
        config.process.noise_offset = 0.1
    if "remat" not in stored["denoiser"]:  # an imported config has no settings of training
        config.denoiser.remat = "block"
    stages.tune_large(config, argument)
    config.compute_dtype = model.compute_dtype
    config.data.update(dict(image_size=model.data.image_size, cache_latents=False))
    stages.own_images(config, dataset or "folder/needles", "needles")
    return config
