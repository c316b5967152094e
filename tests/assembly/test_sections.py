"""The schema of config sections agrees with the code that reads them."""

import dataclasses
import inspect
import re
import runpy
from typing import get_args

import pytest
import runs
from flax import nnx

from emu_jax.assembly.schema import keys, sections
from emu_jax.assembly.sections import autoencoding, data, generation, training
from emu_jax.assembly.sections.denoisers import Denoiser, Remat
from emu_jax.assembly.sections.runs import TASKS, Run, drawn_by
from emu_jax.data.vectors import Control
from emu_jax.evaluation.references import Sets
from emu_jax.nn.autoencoder import Autoencoder
from emu_jax.nn.conditioner import Conditioner
from emu_jax.nn.contrastive import ContrastiveModel
from emu_jax.nn.control import ControlNet
from emu_jax.nn.denoisers import DENOISERS, GIVEN
from emu_jax.nn.discriminator import PatchDiscriminator
from emu_jax.nn.layers import ACTIVATIONS
from emu_jax.nn.lora import Lora
from emu_jax.nn.stack import POLICIES
from emu_jax.nn.text_adapter import GATES, TextAdapter
from emu_jax.parallel.attention import KINDS
from emu_jax.parallel.mesh import make_mesh
from emu_jax.process.gaussian import GaussianProcess
from emu_jax.process.registry import DISCRETE, SCHEDULES
from emu_jax.registry import loaded
from emu_jax.tasks.bottlenecks import Quantizer
from emu_jax.tasks.distillation import Distillation
from emu_jax.tasks.image_conditions import Editing
from emu_jax.tasks.sampling import Sampling
from emu_jax.tasks.upsampling import LowResolution
from emu_jax.text.clip import _SIZES as CLIP_SIZES
from emu_jax.text.clip import make_clip
from emu_jax.text.encoder import DTYPES
from emu_jax.text.llama_files import SIZES as LLAMA_SIZES
from emu_jax.text.minilm import make_minilm
from emu_jax.text.t5 import _SIZES as T5_SIZES
from emu_jax.text.t5 import make_t5
from emu_jax.text.vectors import make_vector_model
from emu_jax.training.stopping import EarlyStopping
from emu_jax.training.trainer import TrainSettings

REQUIRED = inspect.Parameter.empty


def defaults(kind):
    """Key -> default of a section."""
    found = {}
    for name, (_, _, field) in keys(kind).items():
        given = field.default is not dataclasses.MISSING
        found[name] = field.default if given else REQUIRED
    return found


def parameters(function, *left_out):
    """Argument -> default of a function or class."""
    network = isinstance(function, type) and issubclass(function, nnx.Module)
    every = inspect.signature(function.__init__ if network else function).parameters
    return {name: p.default for name, p in every.items() if name not in {"self", *left_out}}


def literal(kind, name):
    return set(get_args(keys(kind)[name][0]))


@pytest.mark.parametrize("kind", sections(Denoiser))
def test_a_denoisers_keys_are_the_arguments_of_its_constructor(kind):
    own = defaults(kind)
    name = own.pop("kind")
    assert own == parameters(loaded(DENOISERS[name].build), *(GIVEN - own.keys()))


@pytest.mark.parametrize(
    ("section", "code", "left_out", "others"),
    [
        (autoencoding.Autoencoder, Autoencoder, ("latent_channels", "variational"), {}),
        (autoencoding.Judge, ContrastiveModel, ("text_width",), {}),
        (autoencoding.Discriminator, PatchDiscriminator, ("in_channels",), {"enabled"}),
        (autoencoding.Quantizer, Quantizer, ("channels", "codes"), {"codes"}),
        (generation.Conditioner, Conditioner, ("encoders", "width"), {"width"}),
        (generation.Gaussian, GaussianProcess, ("schedule",), {"kind", "schedule", "shift"}),
        (generation.Sampling, Sampling, ("sampler",), {"sampler", "temperature", "previews"}),
        (generation.LowResolution, LowResolution, ("factor", "schedule"), {"factor", "schedule"}),
        (generation.TextAdapter, TextAdapter, ("width", "layers"), {"layers", "on_null"}),
        (generation.Distillation, Distillation, (), set()),
        (generation.Control, ControlNet, ("unet",), {"hint", "strength", "train"}),
        (generation.Spatial, Editing, (), {"kind"}),
        (
            generation.Vectors,
            make_vector_model,
            ("placement",),
            {"size", "layer", "control", "seed"},
        ),
        (generation.Clip, make_clip, ("name",), {"kind"}),
        (generation.T5, make_t5, ("name",), {"kind"}),
        (generation.MiniLM, make_minilm, ("name", "path"), {"kind", "path"}),
        (training.Stop, EarlyStopping, ("metric",), {"metric"}),
        (training.Mesh, make_mesh, ("devices",), {}),
    ],
)
def test_a_sections_keys_and_defaults_are_those_of_the_code_that_reads_it(
    section, code, left_out, others
):
    own = {name: value for name, value in defaults(section).items() if name not in others}
    assert own == parameters(code, *left_out, *("attend", "constrain", "gather", "rngs"))


def test_sections_without_defaults_in_the_code_have_its_names():
    assert defaults(training.Train).keys() == parameters(TrainSettings).keys()
    assert defaults(generation.Lora).keys() - {"dtype"} == parameters(Lora).keys()
    sets = {f.name: f.default for f in dataclasses.fields(Sets)}
    measured = defaults(generation.Measure)
    assert {name: sets[name] for name in ("captions", "needles", "haystack")} == {
        name: measured[name] for name in ("captions", "needles", "haystack")
    }


def test_enumerations_are_those_of_the_code():
    discrete = {name for name, make in SCHEDULES.items() if make().steps is not None}
    assert discrete == set(DISCRETE)
    assert set(get_args(Remat)) == set(POLICIES)
    assert literal(next(iter(sections(Denoiser))), "act") == set(ACTIVATIONS)
    assert literal(Run, "attention") == set(KINDS)
    assert set(get_args(generation.Dtype)) == set(DTYPES)
    assert literal(generation.Clip, "size") == {"", *CLIP_SIZES}
    assert literal(generation.T5, "size") == {"", *T5_SIZES}
    assert literal(generation.Vectors, "size") == {"", *LLAMA_SIZES}
    assert literal(generation.TextAdapter, "init") == set(GATES)
    assert literal(generation.Vectors, "control") == set(get_args(Control))


def every_section():
    found = {}

    def visit(kind):
        if kind.__name__ in found:
            return
        found[kind.__name__] = kind
        for annotation, _, _ in keys(kind).values():
            for name in re.findall(r"\w+", str(annotation)):
                for module in (autoencoding, data, generation, training):
                    if dataclasses.is_dataclass(getattr(module, name, None)):
                        visit(getattr(module, name))

    for kind in (*(task.section for task in TASKS.values()), *sections(Denoiser)):
        visit(kind)
    return list(found.values())


@pytest.mark.parametrize("kind", every_section())
def test_every_key_is_documented(kind):
    for name, (_, about, _) in keys(kind).items():
        assert re.fullmatch(r"[A-Z1].*\.", about.doc), name
    assert kind.__doc__


def test_the_reference_of_keys_is_up_to_date():
    """Else: python docs/site/config_keys.py"""
    script = runpy.run_path(f"{runs.ROOT}/docs/site/config_keys.py")
    assert script["PAGE"].read_text() == script["page"]()


def test_a_model_draws_without_the_group_of_an_adversary():
    config = {"task": "feedback", "teachers": {}, "groups": {"generator": 1, "discriminator": 2}}
    assert drawn_by(config) == {"task": "generation", "groups": {"generator": 1}}
