"""Mistakes in arguments: one sentence, status 2, before anything is imported that takes seconds."""

import errno
import json
import os
import subprocess
import sys

import pytest
import runs

from emu_jax.assembly import arguments
from emu_jax.cli.main import COMMANDS, main

CONFIG = f"--config={runs.ROOT}/configs/latent_diffusion.py:size=test"
WRONG = {
    "train": [[CONFIG, "--wrokdir=x"], [CONFIG, "--workdir=x", "--config.train.steps", "many"]],
    "plan": [[CONFIG, "--topology=v5e:2x2", "--out=x", "--slices=-1"], [CONFIG]],
    "bench": [[CONFIG, "--out=x", "--repeats=many"], [CONFIG, "--out=x", "--measure=speed"]],
    "sample": [["a", "--steps=many"], ["a", "--guidance_scale=-1"], ["a", "--seed=1e3"], []],
    "restyle": [["a.png"], [__file__, "a fox", "--strength=2"]],
    "backdrop": [["a.png"], [__file__, "a fox", "--box=1,2,3"]],
    "sticker": [[], ["a fox", "--count=0"]],
    "app": [["--port=0"], ["--kept=many"], ["--out=gs://bucket/app"]],
    "upsample": [["a.png"], ["nowhere.png", "--checkpoint=x"]],
    "compare": [[], ["a", "--count=0"], ["a", "--step=3"]],
    "evaluate": [["a", "--data_dir=gs://bucket"]],
    "reconstruct": [["a", "--batch_size=-1"]],
    "claims": [[], ["a.toml", "--outt=b"]],
    "export": [["a"], ["a", "--out=b", "--dtype=int8"]],
    "import": [["a", "--out=gs://bucket"]],
    "people": [[], ["lisst"], ["power", "much"], ["curate", "a", "--out=x", "--votes=many"]],
    "rewards": [[], ["a", "--selct=x"]],
    "data": [[], ["lisst"], ["build"], ["show", "a/b", "--count=many"], ["list", "--force"]],
}
SCRIPT = """
import contextlib, io, json, sys
from emu_jax.assembly import checking
from emu_jax.cli.main import main

checking.find_spec = lambda name: None  # as without the packages for buckets
found = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(err):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
    found.append((status, err.getvalue()))
heavy = ("jax", "flax", "numpy", "tensorflow_datasets", "grain", "orbax", "PIL", "pyarrow")
print(json.dumps([found, [name for name in heavy if name in sys.modules]]))
"""


def test_help_and_mistakes_are_answered_at_once():
    """Every command in one process, which ends with no heavy module imported."""
    helps = [[command, "--help"] for command in COMMANDS] + [["data", "build", "--help"]]
    wrong = [[command, *given] for command, lines in WRONG.items() for given in lines]
    assert set(WRONG) == set(COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([*helps, *wrong]),
        capture_output=True,
        text=True,
        check=True,
    )
    found, heavy = json.loads(done.stdout)
    assert heavy == []
    for line, (status, said) in zip(helps, found, strict=False):
        assert status == 0 and f"usage: emu-jax {line[0]}" in said, line
    for line, (status, said) in zip(wrong, found[len(helps) :], strict=True):
        assert status == 2 and said.startswith("emu-jax: ") and said.count("\n") == 1, (line, said)
        flags = [given.partition("=")[0] for given in line if given.startswith("--")]
        if "many" in "".join(line):
            assert "many" in said and flags[-1].removeprefix("--") in said, said


def test_a_config_may_follow_its_flag(capsys):
    flag, _, file = CONFIG.partition("=")
    assert main(["train", flag, file]) == 2
    assert "needs --workdir=DIR" in capsys.readouterr().err
    assert main(["train", flag, file, "--workdir", "x", "--config.train.steps", "0"]) == 2
    assert "config.train.steps is 0; use 1 or more." in capsys.readouterr().err


@pytest.mark.parametrize("occupied", ["file", "file/below", "x" * 300, "link"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", CONFIG, "--workdir"],
        ["plan", CONFIG, "--topology=v5e:2x2", "--out"],
        ["bench", CONFIG, "--out"],
        ["sample", "a fox", "--out"],
        ["upsample", __file__, "--checkpoint=x", "--out"],
        ["compare", "x", "--out"],
        ["reconstruct", "x", "--out"],
        ["export", "x", "--out"],
        ["import", "x", "--out"],
    ],
)
def test_a_place_that_cannot_be_written_is_named_at_once(command, occupied, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("link")
    assert main([*command, str(tmp_path / occupied)]) == 2
    said = capsys.readouterr().err
    assert f"{command[-1]}: {tmp_path}/" in said and "cannot be written to (" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_without_permission_is_named(code, tmp_path, monkeypatch, capsys):
    def refuse(*, dir):
        raise OSError(code, os.strerror(code), str(dir))

    monkeypatch.setattr(arguments.tempfile, "mkdtemp", refuse)
    assert main(["sample", "a fox", f"--out={tmp_path}/new/out"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/new/out cannot be written to ({os.strerror(code)}); name another" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    """Wherever it is opened: the error of the system has its name."""

    def refuse(*given, **options):
        raise PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/config.json")

    monkeypatch.setattr("emu_jax.cli.export.Parser.parse_args", refuse)
    assert main(["export", "x", "--out=y"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/config.json cannot be used: Permission denied; check" in said
