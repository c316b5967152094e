"""Promises of the house as a whole: what the README says exists, the command line answers."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emu_jax.cli import main as cli
from emu_jax.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "launch").glob("*.sh"),
    *(ROOT / "launch").glob("*.yaml"),
    *(ROOT / "configs").glob("*.py"),
]
ROOMS = sorted(path.parent for path in (ROOT / "emu_jax").glob("*/__init__.py"))
CONFIGS = sorted(
    {c for page in PAGES for c in re.findall(r"--config=(configs/[\w./:=,]+)", page.read_text())}
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_and_file_says_what_it_is_for(room):
    for path in room.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_every_room_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [room.name for room in ROOMS if f"`emu_jax/{room.name}`" not in readme] == []


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_that_is_named_anywhere_loads(config):
    path, _, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location("config_under_test", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.get_config(argument or None)


def test_the_readme_names_configs():
    assert len(CONFIGS) >= 3  # else the test above tests nothing


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".md"], ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("script", sorted(ROOT.glob("launch/*.sh")), ids=lambda p: p.name)
def test_every_script_parses(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_help_is_quick_and_names_every_command():
    code = (
        "import sys; from emu_jax.cli.main import main; status = main(['--help']);"
        "assert 'jax' not in sys.modules, 'help waits for jax'; sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(command in run.stdout for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_there(command):
    assert callable(cli.command(command))


@pytest.mark.parametrize(("word", "hint"), [("trian", "did you mean train?"), ("x", "there are ")])
def test_a_misspelt_command_is_one_sentence(word, hint, capsys):
    assert cli.main([word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("emu-jax: ") and hint in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("the folder x is missing: make it"), 2, "the folder x is missing: make it"),
        (OSError(28, "No space left on device", "/runs/a"), 2, "the disk is full: /runs/a"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            2,
            "/a/b cannot be used: Permission",
        ),
        (UserError("the column 'a\n\x1b[31m\ud800' is"), 2, "'a\\n\\x1b[31m\\ud800' is"),
        (UserError(f"there is no {'a' * 5000}: make it"), 2, "aaa: make it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error, status, message, monkeypatch, capsys):
    def fail(argv):
        assert argv == ["--flag", "value"]
        raise error

    monkeypatch.setattr(cli, "command", lambda name: fail)
    assert cli.main(["train", "--flag", "value"]) == status
    err = capsys.readouterr().err
    assert err.startswith("emu-jax: ") and message in err and err.count("\n") == 1
    assert len(err) < 1100


def test_our_own_defects_keep_their_traceback(monkeypatch):
    def fail(argv):
        raise FileNotFoundError(2, "No such file", "x")

    monkeypatch.setattr(cli, "command", lambda name: fail)
    with pytest.raises(FileNotFoundError):
        cli.main(["train"])
