"""From a config to the task that trains adapters of text encoders."""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly.generation import make_generation
from emu_jax.assembly.networks import frozen_arrays
from emu_jax.errors import UserError
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.base import Vectors
from emu_jax.tasks.distillation import Distillation, fixed_projections
from emu_jax.tasks.text_adaptation import PROJECTION, TextAdaptation
from emu_jax.text.language_model import LanguageModel
from emu_jax.text.llama_files import SIZES
from emu_jax.text.vectors import VectorModel, make_vector_model


def make_text_adaptation(config: ConfigDict, on: Placement) -> TextAdaptation:
    """The base's own parameters are among the task's: :func:`emu_jax.assembly.tasks.make_task`
    freezes them.
    """
    if config.drop_text:
        raise UserError(
            f"drop_text is {config.drop_text}, but an adapter trains on every text: set it to 0."
        )
    base, chosen, section = make_generation(config, on), config.distillation, config.vectors
    frozen, vectors, layer = dict(base.frozen), None, -1
    if chosen.llm:
        model = _vector_model(section, on)
        if section.layer is not None:
            if section.layer not in model.layers:
                raise UserError(
                    f"vectors.layer is {section.layer}; use one of vectors.layers: "
                    f"{', '.join(map(str, model.layers))}."
                )
            layer = model.layers.index(section.layer)
        vectors = Vectors(model, section.control, section.seed)
        widths = {name: encoder.width for name, encoder in base.encoders.items()}
        numbers = fixed_projections(model.width, widths)
        frozen[PROJECTION] = frozen_arrays("fixed random numbers", numbers)
    if chosen.simple_tokens and not any(x.masks_padding for x in base.encoders.values()):
        raise UserError(
            f"distillation.simple_tokens is {chosen.simple_tokens}, but this generator attends to "
            f"the padding of {', '.join(base.encoders)}: set it to 0."
        )
    return TextAdaptation(
        base=base,
        distillation=Distillation(**chosen),
        vectors=vectors,
        layer=layer,
        groups=base.groups,
        frozen=frozen,
    )


def _vector_model(section: ConfigDict, on: Placement) -> VectorModel:
    """The model at ``path``, or without one the shape of ``size``: enough to plan a step."""
    layers = tuple(section.layers) or (() if section.layer is None else (section.layer,))
    if section.path:
        return make_vector_model(section.path, layers, section.dtype, on)
    if not section.size:
        raise UserError(
            "vectors.path is empty: name a language model, or set distillation.llm to 0."
        )
    config = SIZES[section.size]
    layers = layers or (int(config["num_hidden_layers"]) - 1,)
    return LanguageModel(Path(), config, layers, section.dtype, on)
