"""From a config to the task that trains adapters of text encoders."""

from pathlib import Path

from ml_collections import ConfigDict

from emu_jax.assembly.generation import make_generation
from emu_jax.assembly.networks import frozen_arrays
from emu_jax.errors import UserError
from emu_jax.parallel.placement import Placement
from emu_jax.tasks.distillation import Distillation, fixed_projections
from emu_jax.tasks.text_adaptation import PROJECTION, TextAdaptation
from emu_jax.text.language_model import LanguageModel, make_language_model
from emu_jax.text.llama_files import SIZES


def make_text_adaptation(config: ConfigDict, on: Placement) -> TextAdaptation:
    """The base's own parameters are among the task's: :func:`emu_jax.assembly.tasks.make_task`
    freezes them.
    """
    if config.drop_text:
        raise UserError(
            f"drop_text is {config.drop_text}, but an adapter trains on every text: set it to 0."
        )
    base, chosen = make_generation(config, on), config.distillation
    frozen, model, layer = dict(base.frozen), None, -1
    if chosen.llm:
        model = _language_model(chosen, on)
        if chosen.layer is not None:
            if chosen.layer not in model.layers:
                raise UserError(
                    f"distillation.layer is {chosen.layer}; use one of distillation.layers: "
                    f"{', '.join(map(str, model.layers))}."
                )
            layer = model.layers.index(chosen.layer)
        widths = {name: encoder.width for name, encoder in base.encoders.items()}
        numbers = fixed_projections(model.width, widths)
        frozen[PROJECTION] = frozen_arrays("fixed random numbers", numbers)
    names = ("llm", "prompt", "target", "direction", "tokens", "column")
    return TextAdaptation(
        base=base,
        distillation=Distillation(**{name: chosen[name] for name in names}),
        language_model=model,
        layer=layer,
        groups=base.groups,
        frozen=frozen,
    )


def _language_model(section: ConfigDict, on: Placement) -> LanguageModel:
    """The model at ``path``, or without one the shape of ``size``: enough to plan a step."""
    layers = tuple(section.layers)
    if section.path:
        return make_language_model(section.path, layers, section.dtype, on)
    if not section.size:
        raise UserError("distillation.path is empty: name a language model, or set llm to 0.")
    config = SIZES[section.size]
    layers = layers or (int(config["num_hidden_layers"]) - 1,)
    return LanguageModel(Path(), config, layers, section.dtype, on)
