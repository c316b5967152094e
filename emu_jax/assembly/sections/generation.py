"""The parts of a generator: codec, text, conditioner, process, sampling, adapter, judge."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from emu_jax.assembly.kinds import Kinds
from emu_jax.assembly.registry import CODECS
from emu_jax.assembly.schema import Section, key, required
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.registry import METRICS
from emu_jax.process.registry import DISCRETE, PROCESSES, SAMPLERS, SCHEDULES, Spacing
from emu_jax.text.registry import ENCODERS

Dtype = Literal["float32", "bfloat16"]
_NULL = "What stands for no text: the encoded empty string, or zeros."
_DTYPE = "Dtype of the weights and of the computation."
_PATH = "A local folder, or a name on the hub; empty: its shape alone, to plan with."


@dataclass(frozen=True, kw_only=True)
class AutoencoderCodec(Section):
    """Latents or tokens of a trained autoencoder."""

    kind: Literal["autoencoder"] = key("autoencoder", "The codec.")
    path: str = required(
        "A run, an exported model, builtin:NAME, or a config file to plan with.",
        filled=True,
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class IdentityCodec(Section):
    """Pixels as they are."""

    kind: Literal["identity"] = key("identity", "The codec.")


Codec = Annotated[Section, Kinds(CODECS, AutoencoderCodec, IdentityCodec, given=("name",))]


@dataclass(frozen=True, kw_only=True)
class MiniLM(Section):
    """The small text encoder that is installed as a package."""

    kind: Literal["minilm"] = key("minilm", "The text encoder.")
    path: str = key("", "Folder of a BERT; empty: the installed package.", path=True)
    length: int = key(16, "Tokens of a text.", at_least=1)
    dtype: Dtype = key("float32", _DTYPE)
    null: Literal["empty", "zeros"] = key("empty", _NULL)


@dataclass(frozen=True, kw_only=True)
class Clip(Section):
    """CLIP's text tower."""

    kind: Literal["clip"] = key("clip", "The text encoder.")
    path: str = key("", _PATH, path=True)
    size: Literal["", "vit_l", "openclip_h", "openclip_bigg"] = key(
        "", "The published size; needed without a path."
    )
    length: int = key(77, "Tokens of a text.", at_least=1)
    layer: Literal["last", "penultimate"] = key("last", "Layer whose states are used.")
    pooled: bool = key(True, "Use the pooled vector as well.")
    dtype: Dtype = key("float32", _DTYPE)
    null: Literal["empty", "zeros"] = key("empty", _NULL)


@dataclass(frozen=True, kw_only=True)
class T5(Section):
    """T5 v1.1's encoder."""

    kind: Literal["t5"] = key("t5", "The text encoder.")
    path: str = key("", _PATH, path=True)
    size: Literal["", "small", "base", "large", "xl", "xxl"] = key(
        "", "The published size; needed without a path."
    )
    length: int = key(77, "Tokens of a text.", at_least=1)
    padding: Literal["masked", "attended", "read"] = key(
        "masked", "What attends to padding: nothing, the generator, or T5 as well (read)."
    )
    lowercase: bool = key(False, "Convert texts to lower case and strip spaces.")
    dtype: Dtype = key("float32", _DTYPE)
    null: Literal["empty", "zeros"] = key("empty", _NULL)


@dataclass(frozen=True, kw_only=True)
class BertTokens(Section):
    """BERT's tokens, for a network that has the text encoder inside."""

    kind: Literal["bert_tokens"] = key("bert_tokens", "The text encoder.")
    path: str = key("", "Folder of the tokenizer; needed except to plan.", path=True)
    length: int = key(35, "Tokens of a text.", at_least=3)
    vocabulary: int = key(30524, "Ids that the network has.", at_least=1)
    dtype: Dtype = key("float32", _DTYPE)
    null: Literal["empty", "zeros"] = key("empty", _NULL)


TextEncoder = Annotated[Section, Kinds(ENCODERS, MiniLM, Clip, T5, BertTokens, given=("name",))]


@dataclass(frozen=True, kw_only=True)
class Conditioner(Section):
    """How the states of the text encoders are joined (:mod:`emu_jax.nn.conditioner`)."""

    width: int = key(0, "Width to which tokens are projected; 0: no projection.", at_least=0)
    combine: Literal["tokens", "channels", "padded"] = key("tokens", "How encoders are joined.")
    size_features: int = key(
        256, "Sinusoids for each of the image's sizes; 0: sizes do not condition.", at_least=0
    )
    aesthetic_score: float | None = key(
        None, "Use aMUSEd's micro-conditions, with this score for all images."
    )


@dataclass(frozen=True, kw_only=True)
class TextAdapter(Section):
    """Adapters of the text encoders' states (:mod:`emu_jax.nn.text_adapter`)."""

    layers: int = key(0, "Transformer layers of an adapter; 0: there is no adapter.", at_least=0)
    heads: int = key(8, "Heads of these layers.", at_least=1)
    hidden: int = key(2048, "Width of their feed-forward networks.", at_least=1)
    dropout: float = key(0.1, "Dropout in training.", at_least=0, below=1)
    eta: float = key(
        0.1,
        "Share of the adapter in the states; 0: the states stay as they are.",
        at_least=0,
        at_most=1,
    )
    init: Literal["zeros", "kaiming", "normal", "uniform"] = key(
        "zeros", "Start of the kernel of the last layer."
    )
    zero_bias: bool = key(False, "The bias of the last layer starts at zero.")
    on_null: bool = key(True, "Adapt the null text and negative prompts as well.")


@dataclass(frozen=True, kw_only=True)
class Distillation(Section):
    """What a text adapter learns beside the images (:mod:`emu_jax.tasks.distillation`)."""

    llm: float = key(1e-5, "Weight of the language model's vectors; 0: none.", at_least=0)
    prompt: float = key(1e-5, "Weight of the complex prompt's states; 0: none.", at_least=0)
    target: Literal["encoder", "query"] = key(
        "encoder", "What is compared with the vector: the adapter's encoder, or its query."
    )
    direction: Literal["student", "teacher"] = key(
        "student", "What comes first in the divergence from the vector."
    )
    tokens: Literal["sum", "mean"] = key("sum", "How divergences are reduced over tokens.")
    column: str = key("complex", "The manifest's column of complex prompts.", filled=True)
    simple_tokens: int = key(
        0,
        "Tokens of a simple prompt that training reads, of encoders that mask padding; longer "
        "prompts are cut. 0: all.",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class Vectors(Section):
    """A model's vectors of the simple prompts (:mod:`emu_jax.text.vectors`)."""

    path: str = key(
        "builtin:smollm2",
        "A language model (a folder, a GGUF file, a hub name), builtin:minilm, or a .pt file of "
        "vectors by prompt.",
        path=True,
    )
    size: Literal["", "smollm2_135m", "llama_7b", "llama_13b", "llama_33b"] = key(
        "", "The language model's shape where path is empty, to plan with."
    )
    layers: tuple[int, ...] = key(
        (), "Blocks whose vectors are cached; empty: layer, or the last block.", at_least=0
    )
    layer: int | None = key(
        None, "The block whose vector is used; None: the last of layers.", at_least=0
    )
    dtype: Dtype = key("float32", _DTYPE)
    control: Literal["none", "shuffled", "random"] = key(
        "none", "Vectors of other prompts, or random ones, in place of the prompts' own."
    )
    seed: int = key(0, "Seed of the control.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Control(Section):
    """A ControlNet beside the U-Net (:mod:`emu_jax.nn.control`)."""

    hint: Literal[
        "", "canny", "edges", "depth", "segmentation", "low_resolution", "before", "other"
    ] = key(
        "",
        "The further image that it follows; canny is computed from the image itself. Empty: there "
        "is no ControlNet.",
    )
    hint_channels: Literal[3] = key(3, "Channels of a hint.")
    hint_widths: tuple[int, ...] = key(
        (16, 32, 96, 256),
        "Channels of the hint's encoder, at full size and after each halving.",
        at_least=1,
        filled=True,
    )
    attention: bool = key(
        True, "Copy the attention of the U-Net as well; False: residual blocks alone."
    )
    bgr: bool = key(False, "The channels of hints are in the order blue, green, red.")
    strength: float = key(1.0, "Factor of what it adds in sampling.", at_least=0)
    train: bool = key(
        True, "It trains, over the frozen generator of init_from; False: it is part of a generator."
    )


@dataclass(frozen=True, kw_only=True)
class Spatial(Section):
    """An image beside the denoiser's input (:mod:`emu_jax.tasks.image_conditions`)."""

    kind: Literal["", "inpainting", "editing"] = key(
        "",
        "Inpainting (a mask and the rest of the image), editing (the image before the edit), or "
        "none.",
    )
    drop: float = key(
        0.05, "Share of training images of editing without their image.", at_least=0, at_most=1
    )


@dataclass(frozen=True, kw_only=True)
class LowResolution(Section):
    """The low-resolution image of a super-resolution stage (:mod:`emu_jax.tasks.upsampling`)."""

    factor: int = key(
        0, "Ratio of the sides of the two images; 0: not a super-resolution stage.", at_least=0
    )
    level: float = key(0.1, "Noise level in sampling, of pixels.", at_least=0, at_most=1)
    crop: int = key(0, "Side of the training windows in pixels; 0: whole images.", at_least=0)
    schedule: Annotated[str, DISCRETE, ""] = key(
        "", "Discrete noise schedule of the image; empty: continuous levels."
    )
    align_corners: bool = key(False, "Enlarge from corner to corner; False: from edge to edge.")


@dataclass(frozen=True, kw_only=True)
class Gaussian(Section):
    """Gaussian noise (:mod:`emu_jax.process.gaussian`)."""

    kind: Literal["gaussian"] = key("gaussian", "The process.")
    schedule: Annotated[str, SCHEDULES] = key("cosine", "Noise schedule.")
    shift: float = key(1.0, "Timestep shift; 1: none.", above=0)
    prediction: Literal["eps", "x0", "v", "flow"] = key("v", "What the network predicts.")
    time_input: Literal["index", "continuous", "log_snr"] = key(
        "continuous", "The timestep input of the network."
    )
    weighting: Literal["none", "min_snr"] = key("none", "Weights of the loss.")
    gamma: float = key(5.0, "Largest weight of min_snr.", above=0)
    time_density: Literal["uniform", "logit_normal"] = key(
        "uniform", "Distribution of training times."
    )
    time_location: float = key(0.0, "Location of logit_normal; above 0: more noise.")
    time_scale: float = key(1.0, "Scale of logit_normal.", above=0)
    noise_offset: float = key(0.0, "Noise of a channel's mean, in training.", at_least=0)
    bounds: tuple[float, float] = key((1e-3, 1.0), "Least and greatest time.", above=0, at_most=1)
    variance: Literal["fixed", "learned_range", "ignored"] = key(
        "fixed", "A variance that the network predicts: there is none, used, or ignored."
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.bounds[0] >= self.bounds[1]:
            yield "bounds", "a lower time and a higher one"


@dataclass(frozen=True, kw_only=True)
class Masking(Section):
    """Masked tokens (:mod:`emu_jax.process.masking`)."""

    kind: Literal["masking"] = key("masking", "The process.")


Process = Annotated[Section, Kinds(PROCESSES, Gaussian, Masking, given=("codes",))]


@dataclass(frozen=True, kw_only=True)
class Sampling(Section):
    """How images are sampled; defaults of ``emu-jax sample`` and of previews."""

    sampler: Annotated[str, SAMPLERS] = required("The sampler; parallel is for tokens.")
    steps: int = key(25, "Number of sampling steps.", at_least=1)
    spacing: Spacing = key("trailing", "Spacing of the times.")
    guidance_scale: float = key(5.0, "Scale of classifier-free guidance; 1: none.", at_least=0)
    image_guidance_scale: float = key(
        1.0, "Scale of guidance by the image before the edit, of editing; 1: none.", at_least=0
    )
    guidance_rescale: float = key(
        0.0, "Share of the restored standard deviation.", at_least=0, at_most=1
    )
    guidance_ramp: bool = key(False, "Guidance rises from 1 to its scale.")
    sag_scale: float = key(
        0.0, "Scale of self-attention guidance, for U-Nets; 0: none, usual 0.75.", at_least=0
    )
    threshold: Literal["none", "static", "dynamic"] = key(
        "none", "How predicted pixels are kept in range."
    )
    threshold_quantile: float = key(0.995, "Quantile of dynamic.", above=0, at_most=1)
    threshold_limit: float = key(0.0, "Largest threshold of dynamic; 0: any.", at_least=0)
    temperature: float = key(0.0, "Noise in the confidence of parallel.", at_least=0)
    previews: int = key(16, "Images of a preview.", at_least=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if 0 < self.threshold_limit < 1:
            yield "threshold_limit", "0 (no limit), or 1 or more"


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Low-rank adapters of the model that ``init_from`` names (:mod:`emu_jax.nn.lora`)."""

    rank: int = key(0, "Rank of the factors; 0: no adapter, the model itself trains.", at_least=0)
    alpha: float = key(16.0, "The product of the factors is scaled by alpha / rank.")
    pattern: str = key(
        "denoiser/.*/(to_[qkv]|to_out/0|to_add_out|add_[qkv]_proj)/kernel",
        "Regular expression, matched at the start of the paths of adapted kernels.",
        regex=True,
    )
    dtype: Dtype = key("float32", "Dtype of the frozen base.")


@dataclass(frozen=True, kw_only=True)
class Measure(Section):
    """Images sampled and measured at every validation; the defaults are emoji and scenes."""

    judge: str = key(
        "", "A trained judge: a run, a model, or builtin:NAME; empty: none.", path=True
    )
    parser: str = key(
        "", "A trained segmenter: a run, a model, or builtin:NAME; empty: none.", path=True
    )
    count: int = key(64, "Number of prompts, of the judge and of the parser each.", at_least=1)
    images_per_prompt: int = key(
        1, "Images of each prompt; with several, how much they differ is measured.", at_least=1
    )
    prompts: str = key(
        "scenes/openmoji:split == validation and kind != person",
        "DATASET:CONDITION or file of the prompts of the parser.",
        filled=True,
    )
    prompt_column: str = key("complex", "Column of the prompts of the parser.")
    metrics: tuple[Annotated[str, METRICS], ...] = key(
        (), "Further metrics of the samples; the references are the needles."
    )
    captions: str = key(
        Sets.captions, "DATASET:CONDITION of the prompts of the judge.", filled=True
    )
    needles: str = key(Sets.needles, "DATASET:CONDITION of the tuning images.", filled=True)
    haystack: str = key(Sets.haystack, "DATASET:CONDITION of the images before.", filled=True)
