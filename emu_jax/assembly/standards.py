"""What models are compared on where the user names nothing: prompts, reference sets, a judge.

Emoji models are compared on emoji. A model that was trained on a data set of the user is compared
on that set's held-out images and captions, without a judge: the shipped one knows emoji only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from emu_jax.assembly.cascade import stages_of
from emu_jax.assembly.judge import SHIPPED
from emu_jax.assembly.models import locate, split_text_adapter
from emu_jax.checkpoint.foreign import described_by
from emu_jax.checkpoint.opened import open_model
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.data.source import find
from emu_jax.evaluation.prompt_sets import PromptSet
from emu_jax.evaluation.references import Sets

_EMOJI = ("emoji/", "faulty/", "finishes/")  # data sets of emoji drawings


def standards(
    models: Sequence[str],
    given: Mapping[str, str | None],
    judge: str | None = None,
    prompts: PromptSet | None = None,
) -> tuple[Sets, str]:
    """(sets, judge) of a comparison of ``models``, of which the last that was trained on a data set
    of the user decides.

    ``given`` are the fields of :class:`Sets` that the user named, others None; ``judge`` None: none
    was named. An empty set is not used.
    """
    named = {name: value for name, value in given.items() if value is not None}
    owned = [data for data in map(_own_data, reversed(models)) if data]
    judge = judge if judge is not None else "" if owned else SHIPPED
    # An exported model does not say where its data set was.
    places = [named.get("data_dir"), *(data.get("data_dir") for data in owned), DEFAULT_DATA_DIR]
    base = Sets(next(filter(None, places)))
    if not judge:
        base = replace(base, captions="", kept="")
    if owned:
        own = owned[0]
        trained = _named(next(_sources(own["train"])))
        held_out = next(map(_named, _sources(own.get("validation") or {})), trained)
        # Elsewhere than where the model was trained its data set may be missing.
        used = bool(find(held_out.partition(":")[0], base.data_dir)) or prompts is None
        kept = held_out if used else ""
        base = replace(base, captions=held_out, needles=trained, kept=kept)
    return replace(base, **named), judge


def _own_data(model: str) -> Mapping[str, Any] | None:
    """The section ``data`` of the first stage that was trained on a data set of the user."""
    for stage in stages_of(model):
        with described_by(stage):
            data = open_model(locate(split_text_adapter(stage)[0])).config.get("data", {})
            if any(not s["dataset"].startswith(_EMOJI) for s in _sources(data.get("train"))):
                return data
    return None


def _sources(section: Any) -> Iterator[Mapping[str, Any]]:
    """The sources at any depth of a part of the section ``data``."""
    if isinstance(section, Mapping):
        if "dataset" in section:
            yield section
        else:
            for value in section.values():
                yield from _sources(value)


def _named(source: Mapping[str, Any]) -> str:
    """A source as ``DATASET`` or ``DATASET:CONDITION``."""
    return ":".join(filter(None, (source["dataset"], source.get("select", ""))))
