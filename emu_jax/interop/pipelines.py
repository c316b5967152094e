"""Whole pipelines <-> the sections of a config of ours.

A pipeline becomes a model folder of ours, the denoiser's, with the other parts in folders inside
it: ``codec`` (an autoencoding model), ``text_encoder`` and ``tokenizer``, both unchanged. The
config names them by paths relative to the folder. :mod:`emu_jax.interop.deepfloyd` is for pipelines
of pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_jax.checkpoint.export import Model
from emu_jax.checkpoint.huggingface import find_folder, tokenizer_folder_of
from emu_jax.errors import UserError
from emu_jax.interop import deepfloyd, pixart, schedulers
from emu_jax.interop.components import (
    MMDIT,
    PIXART,
    UNET,
    UVIT,
    Component,
    Imported,
    Parts,
    as_it_came,
    codec_class,
    denoiser_of,
    export_text_encoder,
    import_autoencoder,
    import_denoiser,
    import_text_encoder,
    import_vq,
    prepare_autoencoder,
    prepare_denoiser,
    save_autoencoder,
)
from emu_jax.interop.configs import square
from emu_jax.interop.files import INDEX, SCHEDULER, write_json

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
AMUSED, SIGMA = "AmusedPipeline", "PixArtSigmaPipeline"
SD3 = "StableDiffusion3Pipeline"
# Pipelines of an image beside the latents: class -> that of the same conditioning otherwise, and
# ``spatial.kind`` of a config.
_BESIDE = {
    "StableDiffusionInpaintPipeline": (SD, "inpainting"),
    "StableDiffusionXLInpaintPipeline": (SDXL, "inpainting"),
    "StableDiffusionInstructPix2PixPipeline": (SD, "editing"),
}
# The version of diffusers whose layout is written; its inpainting pipeline needs to read one.
_LAYOUT = "0.38.0"
_DENOISERS = {SD: UNET, SDXL: UNET, AMUSED: UVIT, SIGMA: PIXART, SD3: MMDIT}
# The aesthetic score of aMUSEd's training, which is the default of its pipeline.
AESTHETIC_SCORE = 6.0
# Length of a text in tokens of T5.
_T5_LENGTH = {SIGMA: 300, SD3: 256}
# Sampling defaults of a pipeline.
_CUSTOM = {
    SIGMA: dict(steps=20, guidance_scale=4.5),
    SD3: dict(steps=28, guidance_scale=7.0),
}


# In ----------------------------------------------------------------------------------------------


def import_pipeline(source: Parts, out: Path, drop_variance: bool = False) -> Imported:
    """The generator; codec and text encoders are written to folders in ``out``.

    ``drop_variance``: without the variance that networks of DeepFloyd IF predict.
    """
    index = source.settings(file=INDEX)
    kind = index.get("_class_name")
    kind, spatial = _BESIDE.get(str(kind), (kind, ""))
    if kind in (deepfloyd.BASE, deepfloyd.SUPER):
        return deepfloyd.import_pixels(source, index, out, drop_variance)
    if kind not in _DENOISERS:
        known = ", ".join((*_DENOISERS, *_BESIDE, deepfloyd.BASE, deepfloyd.SUPER))
        raise UserError(f"{source.where()} is a {kind}; supported are {known}.")
    if drop_variance:
        raise UserError(
            f"--drop_variance is for pipelines of DeepFloyd IF; a {kind} predicts no variance."
        )
    denoiser_kind = _DENOISERS[kind]
    denoiser = import_denoiser(source, denoiser_kind, denoiser_kind.folder)
    public = denoiser.source[denoiser_kind.folder]
    noise = source.settings("scheduler", SCHEDULER)
    # Refusals before anything large is written.
    if kind == AMUSED:
        codec = import_vq(source, "vqvae")
        process, sampling = _tokens(denoiser, codec, noise)
        conditioner = dict(
            width=0,
            combine="tokens",
            size_features=public.get("micro_cond_encode_dim", 256),
            aesthetic_score=AESTHETIC_SCORE,
        )
    else:
        codec = import_autoencoder(source, "vae")
        if kind == SD3:
            process, sampling = schedulers.flow(noise)
            process["time_density"] = "logit_normal"  # as it was trained
        else:
            process, sampling = schedulers.latents(noise, kind)
            if kind == SIGMA and pixart.predicts_variance(public):
                process["variance"] = "ignored"
        sampling |= _CUSTOM.get(kind, {})
        features = public.get("addition_time_embed_dim") if kind == SDXL else 0
        combine = {SDXL: "channels", SD3: "padded"}.get(kind, "tokens")
        conditioner = dict(width=0, combine=combine, size_features=features)
    if index.get("requires_aesthetics_score"):
        raise UserError(
            f"{source.where()} is conditioned on aesthetic scores (requires_aesthetics_score), "
            "which is not supported."
        )
    _require_fit(source, denoiser, codec, spatial)
    text = _text_sections(kind, source, index)
    factor = 2 ** (len(codec.sections["autoencoder"]["widths"]) - 1)
    image_size = factor * square(public)

    save_autoencoder(codec, out / "codec")
    for name in _encoders(kind):
        import_text_encoder(source, name, out)
    sections = dict(
        codec=dict(kind="autoencoder", path="codec"),
        text=text,
        conditioner=conditioner,
        denoiser=denoiser.sections["denoiser"],
        process=process,
        sampling=sampling,
        image_size=image_size,
    )
    if spatial:
        sections["spatial"] = dict(kind=spatial, drop=0.05)
    if spatial == "editing":
        sampling |= dict(guidance_scale=7.5, image_guidance_scale=1.5)
    return Imported(sections, denoiser.params, dict(denoiser.source, scheduler=noise))


def _require_fit(source: Parts, denoiser: Imported, codec: Imported, spatial: str) -> None:
    """Raises a UserError where the denoiser has other channels than the codec's latents and what is
    beside them.
    """
    arguments, latent = denoiser.sections["arguments"], codec.sections["latent_channels"]
    if "in_channels" not in arguments:  # tokens
        return
    channels, out = arguments["in_channels"], arguments["out_channels"]
    beside = {"inpainting": 1 + latent, "editing": latent}.get(spatial, 0)
    if channels != latent + beside or out not in (latent, 2 * latent):
        wanted = f"of the latents and {beside} channels beside them" if beside else "of the latents"
        raise UserError(
            f"{source.where()} has a denoiser with {channels} channels in and {out} out, and an "
            f"autoencoder with {latent} latent channels. Its class needs a denoiser {wanted}; "
            f"inpainting and editing models have one of {', '.join(_BESIDE)}."
        )


def _tokens(
    denoiser: Imported, codec: Imported, scheduler: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.process`` and ``config.sampling``, if all three parts have the same tokens."""
    arguments, codes = denoiser.sections["arguments"], codec.sections["quantizer"]["codes"]
    if arguments["codes"] != codes:
        raise UserError(
            f"The transformer has a codebook_size of {arguments['codes']}, the vqvae {codes} codes."
        )
    return schedulers.masking(scheduler, arguments["vocabulary"])


def _length(settings: Mapping[str, Any], key: str, where: str) -> int:
    """A number of tokens; CLIP's 77 where it is absent or null."""
    value = settings.get(key)
    if value is None:
        return 77
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}; it must be a number of tokens.")
    return int(min(value, 2**31))


def _encoders(kind: str) -> list[str]:
    count = {SDXL: 2, SD3: 3}.get(kind, 1)
    return ["text_encoder", "text_encoder_2", "text_encoder_3"][:count]


def _text_sections(kind: str, source: Parts, index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``config.text``: SD uses the last layer of CLIP, SDXL and aMUSEd penultimate layers and a
    pooled vector, PixArt-Sigma T5, SD3 penultimate layers, two pooled vectors and T5 with padding.

    The entries of a config are in the order of their names, and their states are joined in it.
    """

    def section(name: str, **options: Any) -> dict[str, Any]:
        config = source.settings(name)
        tokenizer = source.settings(tokenizer_folder_of(name), "tokenizer_config.json")
        sizes = (config, "max_position_embeddings"), (tokenizer, "model_max_length")
        length = min(_length(settings, key, source.where(name)) for settings, key in sizes)
        return dict(kind="clip", path=name, length=length, dtype="float32", **options)

    if kind == SD:
        return dict(clip=section("text_encoder", layer="last", pooled=False, null="empty"))
    if kind == AMUSED:
        pooling = dict(layer="penultimate", pooled=True, null="empty")
        return dict(clip=section("text_encoder", **pooling))

    def t5(name: str, **options: Any) -> dict[str, Any]:
        sides = dict(length=_T5_LENGTH[kind], dtype="float32", null="empty")
        return dict(kind="t5", path=name, **sides, **options)

    if kind == SIGMA:
        return dict(t5=t5("text_encoder", lowercase=True))
    if kind == SD3:
        pooling = dict(layer="penultimate", pooled=True, null="empty")
        return dict(
            clip_l=section("text_encoder", **pooling),
            openclip_g=section("text_encoder_2", **pooling),
            t5=t5("text_encoder_3", padding="read"),
        )
    null = "zeros" if index.get("force_zeros_for_empty_prompt", True) else "empty"
    sides = dict(layer="penultimate", null=null)
    return dict(
        clip_l=section("text_encoder", pooled=False, **sides),
        openclip_g=section("text_encoder_2", pooled=True, **sides),
    )


# Out ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pipeline:
    """A pipeline to be exported.

    ``kind`` is its class, ``index`` model_index.json, ``noise`` the scheduler's config.
    ``networks`` and ``encoders`` are by the name of their folder in the pipeline; a text encoder is
    given by its present folder.
    """

    kind: str
    index: Mapping[str, Any]
    noise: Mapping[str, Any]
    networks: Mapping[str, Component]
    encoders: Mapping[str, Path]

    def write(self, out: Path) -> None:
        for name, folder in self.encoders.items():
            export_text_encoder(folder, name, out)
        for name, network in self.networks.items():
            network.write(out / name)
        write_json(out / "scheduler" / SCHEDULER, self.noise)
        write_json(out / INDEX, self.index)


def prepare_pipeline(model: Model, codec: Model) -> Pipeline:
    """A generator on a codec's latents or tokens. Refused where the public classes cannot represent
    all of it."""
    config = model.config
    public = pipeline_of(config)
    kind, _ = _BESIDE.get(public, (public, ""))
    noise = _scheduler(kind, model)
    side = config["data"]["image_size"]
    factor = 2 ** (len(codec.config["autoencoder"]["widths"]) - 1)
    networks = {
        "vqvae" if kind == AMUSED else "vae": prepare_autoencoder(codec, side),
        denoiser_of(config).folder: prepare_denoiser(model, side // factor, config["conditioner"]),
    }
    folders = [find_folder(section["path"]) for _, section in sorted(config["text"].items())]
    encoders = dict(zip(_encoders(kind), folders, strict=True))
    index = _index(kind, noise, codec, config) | {"_class_name": public}
    if public != kind:
        index["_diffusers_version"] = _LAYOUT
    if public == "StableDiffusionXLInpaintPipeline":
        index["requires_aesthetics_score"] = False
    return Pipeline(public, index, noise, networks, encoders)


def pipeline_of(config: Mapping[str, Any]) -> str:
    """The public class of a generator.

    Raises:
      UserError: no public class has its conditioning.
    """
    kind, spatial = _conditioned(config), (config.get("spatial") or {}).get("kind", "")
    if not spatial:
        return kind
    for name, own in _BESIDE.items():
        if own == (kind, spatial):
            return name
    raise UserError(
        f"No public pipeline like {kind} has spatial.kind={spatial}: export it without "
        "--format=diffusers."
    )


def _conditioned(config: Mapping[str, Any]) -> str:
    """The public class of the same conditioning beside an image."""
    text = [
        (options.get("kind", name), options.get("layer", "last"), options.get("pooled", True))
        for name, options in sorted(config["text"].items())
    ]
    joined = config["conditioner"]
    if joined.get("width") or config["codec"]["kind"] != "autoencoder":
        text = []
    penultimate, pooled = (("clip", "penultimate", vector) for vector in (False, True))
    sizes, score = joined["size_features"], joined.get("aesthetic_score")
    if denoiser_of(config) is UVIT:
        if text == [pooled] and sizes and score is not None:
            return AMUSED
        raise UserError(
            f"{AMUSED} conditions on the penultimate states of one CLIP, its pooled vector and "
            "micro-conditions (conditioner.aesthetic_score), without projections. The conditioning "
            "of this generator is another: export it without --format=diffusers."
        )
    if denoiser_of(config) is PIXART:
        lowercase = [options.get("lowercase") for options in config["text"].values()]
        if text == [("t5", "last", True)] and lowercase == [True]:
            return SIGMA
        raise UserError(
            f"{SIGMA} generates latents and conditions on the states of T5 for texts in lower case "
            "(text.t5.lowercase), without projections. The conditioning of this generator is "
            "another: export it without --format=diffusers."
        )
    if denoiser_of(config) is MMDIT:
        padding = config["text"].get("t5", {}).get("padding")
        three = [pooled, pooled, ("t5", "last", True)]
        if text == three and joined["combine"] == "padded" and not sizes and padding == "read":
            return SD3
        raise UserError(
            f"{SD3} generates latents and conditions on the penultimate states and pooled vectors "
            "of two CLIPs and on the states of T5 with padding (text.t5.padding=read), joined by "
            "conditioner.combine=padded. The conditioning of this generator is another: export it "
            "without --format=diffusers."
        )
    if text == [("clip", "last", False)] and not sizes:
        return SD
    two = [penultimate, pooled]
    if text == two and joined["combine"] == "channels" and sizes and score is None:
        return SDXL
    raise UserError(
        f"Public pipelines generate latents and condition on the last states of one CLIP ({SD}) or "
        f"on the penultimate states of two CLIPs, a pooled vector and sizes ({SDXL}), without "
        "projections. The conditioning of this generator is another: export it without "
        "--format=diffusers."
    )


def _scheduler(kind: str, model: Model) -> dict[str, Any]:
    """scheduler_config.json."""
    process, sampling = model.config["process"], model.config["sampling"]
    if kind == AMUSED:
        rows = model.params["denoiser/embed/embeddings/embedding"].shape[0]
        own = schedulers.masking_config(rows)
        return as_it_came(
            model,
            "scheduler",
            own,
            lambda c: schedulers.masking(c, rows),
            schedulers.masking(own, rows),
        )
    if kind == SD3:
        own = schedulers.flow_config(process, sampling)
        return as_it_came(model, "scheduler", own, schedulers.flow, schedulers.flow(own))
    if kind == SIGMA and process.get("variance") == "ignored":  # unused by its pipeline too
        process = {**process, "variance": "fixed"}
    keys = ["sampler", "spacing", "threshold"]
    if sampling.get("threshold") == "dynamic":
        keys += ["threshold_quantile", "threshold_limit"]
    return as_it_came(
        model,
        "scheduler",
        schedulers.to_config(process, sampling, kind),
        lambda c: schedulers.latents(c, kind),
        (
            {key: process[key] for key in ("schedule", "prediction", "time_input")},
            {key: {"threshold": "none", **sampling}.get(key) for key in keys},
        ),
    )


def _index(
    kind: str, noise: Mapping[str, Any], codec: Model, config: Mapping[str, Any]
) -> dict[str, Any]:
    """model_index.json: the class of each part."""
    denoiser = denoiser_of(config)
    parts: dict[str, Any] = {
        "_class_name": kind,
        denoiser.folder: ["diffusers", denoiser.public.CLASS],
        "vqvae" if kind == AMUSED else "vae": ["diffusers", codec_class(codec)],
        "scheduler": ["diffusers", noise["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if kind == AMUSED:
        return parts | dict(text_encoder=["transformers", "CLIPTextModelWithProjection"])
    if kind == SIGMA:
        return parts | dict(
            text_encoder=["transformers", "T5EncoderModel"],
            tokenizer=["transformers", "T5Tokenizer"],
        )
    parts |= dict(image_encoder=[None, None], feature_extractor=[None, None])
    if kind == SD3:
        return parts | dict(
            text_encoder=["transformers", "CLIPTextModelWithProjection"],
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            tokenizer_2=["transformers", "CLIPTokenizer"],
            text_encoder_3=["transformers", "T5EncoderModel"],
            tokenizer_3=["transformers", "T5Tokenizer"],
        )
    if kind == SD:
        return parts | dict(safety_checker=[None, None], requires_safety_checker=False)
    return parts | dict(
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
        force_zeros_for_empty_prompt=all(
            options.get("null", "empty") == "zeros" for options in config["text"].values()
        ),
    )
