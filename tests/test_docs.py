"""The documentation runs: its Python examples are executed, its commands are parsed."""

import argparse
import json
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from emu_jax.cli import main as cli

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("emu_jax/weights/*/README.md"),
    *ROOT.glob("configs/*.py"),
]
# An HTML comment directly above an example says why it is not executed.
EXAMPLE = re.compile(r"(-->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^ {4}|&& )emu-jax (\w.*?)(?= && |  +#|$)", re.MULTILINE)
PLACEHOLDER = re.compile(
    r"\.\.\.|\[|--config=FILE|imported\.py:"
    # Of the pages on extending the package: files and names that are made there.
    r"|reward_weighted\.py:|convnet\.py:|white_share"
)


def _examples(page: Path) -> list[str]:
    return [code for comment, code in EXAMPLE.findall(page.read_text()) if not comment]


def _commands(page: Path) -> list[str]:
    """Every command without placeholders, lines that continue it included."""
    text = re.sub(r"\\{1,2}\n\s*", "", page.read_text())
    return [command for command in COMMAND.findall(text) if not PLACEHOLDER.search(command)]


def _with(what) -> list:
    return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if what(p)]


@pytest.mark.parametrize("page", _with(_examples))
def test_every_python_example_runs(page, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in _examples(page):
        exec(compile(code, str(page), "exec"), names)


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells, with fewer steps and smaller batches than the parameters cell sets."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {}
    for cell in _code_cells():
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= dict(SAMPLING_STEPS=2, TUNING_STEPS=2, BATCH_SIZE=2)
    assert (names["WORK"] / "tuned").is_dir()
    assert not np.array_equal(names["before"], names["after"])


def test_the_notebook_has_its_images_and_is_small():
    images = [
        output
        for cell in _code_cells()
        for output in cell["outputs"]
        if "image/png" in output.get("data", ())
    ]
    assert len(images) == 3 and NOTEBOOK.stat().st_size < 300_000


def _code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


class Parsed(Exception):
    """A command has understood its arguments; it goes no further."""


@pytest.mark.parametrize("page", _with(_commands))
def test_every_command_parses(page, monkeypatch):
    parse_args, parse_flags = argparse.ArgumentParser.parse_args, flags.FlagValues.__call__

    def stop_after_arguments(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise Parsed

    def stop_after_flags(self, argv, *args, **kwargs):
        unknown = parse_flags(self, argv, *args, **kwargs)[1:]
        assert not unknown
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after_arguments)
    monkeypatch.setattr(flags.FlagValues, "__call__", stop_after_flags)
    for command in _commands(page):
        name, *arguments = shlex.split(command)
        with pytest.raises(Parsed):
            cli.command(name)(arguments)


def test_the_documentation_has_examples_and_commands():
    assert sum(len(_examples(page)) for page in PAGES) >= 8
    assert sum(len(_commands(page)) for page in PAGES) >= 80
