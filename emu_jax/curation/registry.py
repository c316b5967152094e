"""What a config of curation can name: sources of images, filters and steps, one line an entry.

    FILTERS["mine"] = Lazy("my_module:MyFilter")

An entry's keys in a config are the arguments of its class.
"""

from collections.abc import Callable
from typing import Any

from emu_jax.registry import Lazy

_SOURCES, _FILTERS = "emu_jax.curation.sources:", "emu_jax.curation.filters."
_STEPS = "emu_jax.curation.choices:"

SOURCES: dict[str, Callable[..., Any]] = {  # emu_jax.curation.sources
    "webdataset": Lazy(_SOURCES + "WebDataset"),
    "parquet": Lazy(_SOURCES + "Parquet"),
    "folder": Lazy(_SOURCES + "Folder"),
    "dataset": Lazy(_SOURCES + "DataSet"),
}

FILTERS: dict[str, Callable[..., Any]] = {  # emu_jax.curation.filters
    "aesthetic": Lazy(_FILTERS + "aesthetic:Aesthetic"),
    "clip_score": Lazy(_FILTERS + "clip_score:ClipScore"),
    "concept": Lazy(_FILTERS + "concept:Concept"),
    "embedding": Lazy(_FILTERS + "embedding:Embedding"),
    "focus": Lazy(_FILTERS + "focus:Focus"),
    "hash": Lazy(_FILTERS + "hashing:Hash"),
    "match": Lazy(_FILTERS + "match:Match"),
    "nudity": Lazy(_FILTERS + "nudity:Nudity"),
    "offensive": Lazy(_FILTERS + "offensive:Offensive"),
    "popularity": Lazy(_FILTERS + "popularity:Popularity"),
    "shape": Lazy(_FILTERS + "shape:Shape"),
    "text": Lazy(_FILTERS + "text:Text"),
}

STEPS: dict[str, Callable[..., Any]] = {  # emu_jax.curation.choices
    "threshold": Lazy(_STEPS + "Threshold"),
    "duplicates": Lazy(_STEPS + "Duplicates"),
    "balance": Lazy(_STEPS + "Balance"),
    "top": Lazy(_STEPS + "Top"),
    "sample": Lazy(_STEPS + "Sample"),
}
