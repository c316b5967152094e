"""A ControlNet: a frozen generator learns to follow a further image, such as the edges of another.

    emu-jax train --config=configs/control.py:size=tiny --workdir=runs/control
    emu-jax export runs/control --adapter --out=models/control
    emu-jax sample "a red fox" --control=models/control --control_image=fox.png

A copy of the U-Net's encoder half trains, and nothing else (Zhang et al. 2023, arXiv:2302.05543;
docs/control.md). It starts from the base's values, so `init_from` names a model of the same
architecture. Half of the texts are dropped, as the authors do, so that it follows the hint.

hint=canny (default) computes edges from each image. hint=edges, depth, segmentation or other takes
the further image of this name: in a folder `cat.jpg` and `cat.depth.png` (docs/data.md).

size=tiny: over the shipped generator, on emoji; the copy has no attention, 1.96 M parameters, 3.9
    MB in bf16. 6,000 steps of 32
    hardware  2 CPU cores
    time      53 images per second on two cores: an hour at this rate
    result    edges of held-out concepts are followed by 0.88 (F1) at guidance 1, 0.51 without
              (the shipped `builtin:control_64`)
size=test: the same with a few thousand parameters, for tests

size=sd15 and sdxl: the published settings on images of the user, `folder/pictures`: learning rate
    1e-5, batch 256 (sd15) and 1,024 (sdxl). A run needs `--config.init_from`,
    `--config.codec.path` and text encoders by path
    hardware, time, result  not measured

`--config.lora.rank=8 --config.groups.control.pattern='control/|denoiser/'` trains a LoRA beside it.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from emu_jax.assembly import stages
from emu_jax.assembly.config import group, groups, options, read
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import Control

SMALL, HINTS = ("tiny", "test"), ("canny", "edges", "depth", "segmentation", "other")
BATCH = dict(sd15=256, sdxl=1024)


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(argument, size=(*SMALL, *BATCH), hint=HINTS, data="")
    base = f"{Path(__file__).parent}/latent_diffusion.py:size={chosen.size}"
    config = read(base)
    config.init_from = "builtin:latent_diffusion_64" if chosen.size in SMALL else base
    config.control = section(Control, hint=chosen.hint)
    config.drop_text = 0.5
    config.measure.judge = ""
    own: dict[str, Any] = dict(
        learning_rate=1e-5, schedule="constant", warmup=0, b2=0.999, weight_decay=0.01
    )
    if chosen.size in SMALL:
        config.control.update(dict(hint_widths=(16, 32, 48, 64), attention=False))
        own |= dict(learning_rate=1e-3, schedule="cosine", warmup=100, final=0.02, b2=0.99)
    config.groups = groups(control=group("control/", ema_decay=0.999, **own))
    if chosen.size == "test":
        config.control.hint_widths = (4, 4, 4, 4)
        config.groups.control.optimizer.warmup = 1
    elif chosen.size == "tiny":
        config.train.update(dict(steps=6000, checkpoint_every=250))
    else:
        config.lora.dtype = "bfloat16"  # of the frozen base
        config.groups.control.ema_decay = 0.9999
        config.train.update(dict(steps=50_000, batch_size=BATCH[chosen.size]))
    if chosen.data:
        stages.own_images(config, chosen.data)
    return config
