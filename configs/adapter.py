"""The SUR-adapter: a frozen generator is taught to read a plain sentence as an elaborate prompt.

    emu-jax train --config=configs/adapter.py:size=tiny --workdir=runs/adapter

An adapter on the states of every text encoder trains, and nothing else (Zhong et al. 2023,
arXiv:2305.05189; docs/adapter.md). Every record of the data has a simple and a complex prompt, in
two columns of the manifest. The loss is the generator's own under the simple prompt, plus two
distillation losses: a language model's vector of the simple prompt, and the states of the complex
one. A weight of 0 (`--config.distillation.llm=0`, `--config.distillation.prompt=0`) leaves a loss
out, and its data are not read.

size=tiny: flat images of the data set `scenes`, over `builtin:scenes_96`; adapter 384 wide, 2,000
    steps of 32. The vectors are SmolLM2-135M's, computed when the run starts
    hardware  2 CPU cores
    time      7 minutes for caches, then 23 images per second in the first 50 steps: some 46 minutes
    result    not measured
size=test: the same with a few thousand parameters and without a language model, for tests.
base=pixel_diffusion or masked: another family of these sizes, over a generator of
    `--config.init_from`.

stage=cross_attention trains no adapter but the cross-attention of the denoiser itself, on the same
simple prompts: what an adapter must be compared with. A checkpoint holds the whole generator.

Controls of the language model's vectors: `--config.vectors.control=shuffled` or `random`, and
`--config.vectors.path=builtin:minilm` for another encoder's.

Published sizes, to plan with; a run needs `--config.init_from` and a data set in the form of SURD,
`folder/prompts` with the complex prompts in the column `prompt` (docs/adapter.md). Settings are the
paper's: 5,000 steps of 16, learning rate 1e-5, LLaMA 13B, its last block. size=sd15 is the one that
the paper trained; sdxl and emu have an adapter for each of two text encoders, which the paper does
not cover.
    hardware, time, result  not measured

    emu-jax plan --config=configs/adapter.py:size=sd15 --topology=v5e:1x1 --out=runs/plan
"""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly import emoji, stages
from emu_jax.assembly.config import group, groups, options, read
from emu_jax.assembly.schema import section
from emu_jax.assembly.sections.generation import Distillation, TextAdapter, Vectors
from emu_jax.errors import UserError

SMALL, FAMILIES = ("tiny", "test"), ("latent_diffusion", "pixel_diffusion", "masked")


def get_config(argument: str | None = None) -> ConfigDict:
    chosen = options(
        argument,
        size=(*SMALL, "sd15", "sdxl", "emu"),
        base=FAMILIES,
        stage=("adapter", "cross_attention"),
    )
    if chosen.size not in SMALL and chosen.base != "latent_diffusion":
        raise UserError(f"base={chosen.base} is only available for size=tiny and size=test.")
    if chosen.stage == "cross_attention" and chosen.base == "pixel_diffusion":
        raise UserError("stage=cross_attention is not available for base=pixel_diffusion.")
    base = f"{Path(__file__).parent}/{chosen.base}.py:size={chosen.size}"
    config, pattern = read(base), "denoiser/.*/attn2/"
    if chosen.stage == "adapter":
        pattern = "conditioner/adapter/"
        with config.unlocked():
            config.task = "text_adaptation"
            config.distillation, config.vectors = section(Distillation), section(Vectors)
        config.adapter = section(TextAdapter, layers=2)
        config.drop_text = 0.0
    own = group(
        pattern, learning_rate=1e-5, schedule="constant", b2=0.999, weight_decay=1e-2, clip=1.0
    )
    config.groups = groups(**{chosen.stage: own})
    if chosen.size in SMALL:
        _scenes(config, chosen.size, chosen.stage)
        if chosen.base == "latent_diffusion":
            emoji.draw_scenes(config)
    else:
        _published(config, base, chosen.stage)
    return config


def _published(config: ConfigDict, base: str, stage: str) -> None:
    config.init_from = base
    stages.own_images(config, "folder/prompts")
    if stage == "adapter":
        config.distillation.column = "prompt"
        config.vectors.update(dict(path="", size="llama_13b", dtype="bfloat16"))
        config.lora.dtype = "bfloat16"  # of the frozen base
    config.data.update(dict(flip=True, cache_latents=True, cache_text=True))
    config.train.update(dict(steps=5_000, batch_size=16, checkpoint_every=100))


def _scenes(config: ConfigDict, size: str, stage: str) -> None:
    config.init_from = "builtin:scenes_96"
    config.text.minilm.length = emoji.CAPTION_TOKENS
    config.data.train = emoji.flat_scenes("split == train", "simple")
    config.data.validation = dict(scenes=emoji.flat_scenes("split == validation", "simple"))
    config.measure.judge = ""
    config.groups[stage].optimizer.learning_rate = 1e-4
    if size == "tiny":
        config.train.update(dict(steps=2_000, batch_size=32, validate_every=500))
    if stage == "adapter":
        config.distillation.simple_tokens = 24  # the longest simple prompt has 18
        config.adapter.hidden = 1024
        if size == "test":
            config.adapter.update(dict(layers=1, heads=2, hidden=16))
            config.distillation.llm = 0.0
