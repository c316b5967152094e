"""One small data set through TFDS: what is read is what was stored, in another process too."""

import hashlib
import multiprocessing
import operator
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from emu_jax.data.builder import build
from emu_jax.data.source import find, open_source
from emu_jax.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        Image.new("RGB", (20 + i, 16), (i * 20, 0, 0)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}")
    return folder


@pytest.fixture(scope="module")
def data_dir(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build("folder/mine", folder, path=pictures)
    return folder


def test_reads_the_stored_bytes_in_the_order_of_the_manifest(data_dir, pictures):
    source = open_source("folder/mine", data_dir)
    assert len(source) == 12
    for i in range(12):
        data = source.read(i)
        assert data == (pictures / source.manifest.column("key")[i]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == source.manifest.column("sha256")[i]
        assert source.manifest.column("width")[i] == 20 + i


def test_pickles_as_a_name_and_opens_in_another_process(data_dir):
    source = open_source("folder/mine", data_dir)
    source.read(0), source.manifest
    assert len(pickle.dumps(source)) < 500
    # No function of this module: another package named `tests` may be installed.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        data = pool.apply(operator.methodcaller("read", 7), (source,))
    assert hashlib.sha256(data).hexdigest() == source.manifest.column("sha256")[7]


def test_a_missing_data_set_names_the_command_that_builds_it(tmp_path):
    with pytest.raises(UserError, match=f"emu-jax data build emoji/noto --data_dir={tmp_path}"):
        open_source("emoji/noto", tmp_path)
    for name in ("emoji", "emoji/../x", "a/b/c", "/x"):
        with pytest.raises(UserError, match="not the name of a data set"):
            open_source(name, tmp_path)


KILLED = """
import os, signal, sys
from emu_jax.data import builder, folder
inner = folder.Folder._rows
def rows(self):
    for i, row in enumerate(inner(self)):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row
folder.Folder._rows = rows
builder.build("folder/mine", sys.argv[2], path=sys.argv[1])
"""


def test_a_killed_build_leaves_nothing_that_looks_complete(pictures, tmp_path):
    command = [sys.executable, "-c", KILLED, str(pictures), str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert any("incomplete" in p for _, folders, _ in os.walk(tmp_path) for p in folders)
    assert find("folder/mine", tmp_path) is None
    assert len(build("folder/mine", tmp_path, path=pictures)) == 12


def test_a_data_set_imports_no_module_that_its_files_name(data_dir, tmp_path, monkeypatch):
    """tfds imports the module of each class in features.json."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hostile_feature.py").write_text(f"open('{tmp_path}/executed', 'w')\n")
    copy = shutil.copytree(data_dir, tmp_path / "data")
    (file,) = copy.rglob("features.json")
    text = file.read_text()
    foreign = text.replace("tensorflow_datasets.core.features.image_feature.", "hostile_feature.")
    legacy = '{"type": "hostile_feature.Image", "content": {}}'
    for content in (foreign, legacy):
        file.write_text(content)
        with pytest.raises(UserError, match=r"names the class 'hostile_feature\.Image'"):
            open_source("folder/mine", copy).read(0)
        assert not (tmp_path / "executed").exists()
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_source("folder/mine", copy).read(0)
