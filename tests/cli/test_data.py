"""``emu-jax data``: build, list and show, and what a user can get wrong."""

import errno
import os
import subprocess
import sys

import pytest
from PIL import Image

from emu_jax.cli.main import main
from emu_jax.data import builder
from emu_jax.data.source import find, list_sources, open_source


def make_images(folder, count, color=0):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (20, 16), (color, i, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image {i}")
    return folder


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", 3)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def run(*arguments, data):
    return main(["data", *arguments, f"--data_dir={data}"])


def test_build_list_and_show(images, data, tmp_path, capsys):
    assert run("build", "folder/mine", f"--path={images}", data=data) == 0
    assert "folder/mine: 3 images, 3 captions" in capsys.readouterr().out
    assert sorted(path.name for path in data.iterdir()) == ["folder"]
    (data / "folder/other/1.0.0").mkdir(parents=True)  # not complete
    assert run("list", data=data) == 0
    assert capsys.readouterr().out == "folder/mine: 3 images, 3 captions\n"
    assert run("show", "folder/mine", f"--out={tmp_path}/grid.png", data=data) == 0
    assert f"3 of 3 images: {tmp_path}/grid.png" in capsys.readouterr().out
    assert run("show", "folder/mine", f"--out={tmp_path}/none/grid.png", data=data) == 2
    assert "none/grid.png cannot be written: No such file" in capsys.readouterr().err


def test_a_list_without_data_sets_says_so(data, capsys):
    assert run("list", data=data) == 0
    assert "There are no data sets in" in capsys.readouterr().out


def test_a_damaged_data_set_is_listed_as_such(images, data, capsys):
    run("build", "folder/a", f"--path={images}", data=data)
    run("build", "folder/b", f"--path={images}", data=data)
    (data / "folder/a/1.0.0/manifest.parquet").write_bytes(b"PAR1")
    capsys.readouterr()
    assert run("list", data=data) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("folder/a: ") and "cannot be read" in first
    assert second == "folder/b: 3 images, 3 captions"


def test_an_existing_name_with_another_path_is_refused(images, data, tmp_path, capsys, monkeypatch):
    other = make_images(tmp_path / "other", 5, color=200)
    assert run("build", "folder/mine", f"--path={images}", data=data) == 0
    assert run("build", "folder/mine", f"--path={other}", data=data) == 2
    said = capsys.readouterr().err
    assert f"folder/mine exists and was built from {images}, not from {other}" in said
    assert "--force" in said
    assert len(open_source("folder/mine", data)) == 3
    monkeypatch.chdir(tmp_path)  # the same directory by another name
    for same in ([f"--path={images}/"], ["--path=images"], []):
        assert run("build", "folder/mine", *same, data=data) == 0
        assert "nothing was built" in capsys.readouterr().err


def test_force_replaces_a_data_set_when_the_new_one_is_complete(images, data, tmp_path, capsys):
    other = make_images(tmp_path / "other", 5, color=200)
    run("build", "folder/mine", f"--path={images}", data=data)
    before = open_source("folder/mine", data).manifest.fingerprint
    assert run("build", "folder/mine", f"--path={tmp_path}/none", "--force", data=data) == 2
    assert open_source("folder/mine", data).manifest.fingerprint == before
    assert run("build", "folder/mine", f"--path={images}", "--force", data=data) == 0
    assert open_source("folder/mine", data).manifest.fingerprint == before
    assert run("build", "folder/mine", f"--path={other}", "--force", data=data) == 0
    source = open_source("folder/mine", data)
    assert len(source) == 5 and source.read(4) == (other / "4.png").read_bytes()
    assert [path.name for path in (data / "folder/mine").iterdir()] == ["1.0.0"]
    assert sorted(path.name for path in data.iterdir()) == ["folder"]


def test_a_data_dir_that_cannot_be_written(images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", "/proc/emu_jax", "/dev/null/x"):
        assert run("build", "folder/mine", f"--path={images}", data=place) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"folder/mine could not be built in {place}: " in err and "--data_dir" in err


FULL = """
import resource, signal, sys
from emu_jax.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
sys.exit(main(["data", "build", "folder/mine", *sys.argv[1:3]]))
"""


def test_a_full_disk_is_one_sentence(images, data):
    """A limit on the size of files stands in for the disk. It would cut bytecode off too."""
    arguments = [f"--path={images}", f"--data_dir={data}", "3000"]
    command = [sys.executable, "-c", FULL, *arguments]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "could not be built" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not data.exists()


def test_an_error_in_the_middle_leaves_nothing(images, data, monkeypatch, capsys):
    def fail(source):
        raise OSError(errno.ENOSPC, "No space left on device", str(source.directory))

    monkeypatch.setattr(builder, "_check", fail)
    assert run("build", "folder/mine", f"--path={images}", data=data) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not data.exists() and find("folder/mine", data) is None and list_sources(data) == []
