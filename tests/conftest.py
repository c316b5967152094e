"""Every test runs on the CPU; a child process that a test starts inherits the same.

Tests compile the same small programs again and again: each is compiled once, and then read from a
folder that the run's processes share and the first of them takes away.
"""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning in forked readers
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="emu_jax-programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import jaxtyping

jax.config.update("jax_platforms", "cpu")  # also where something imported jax first

# Before emu_jax is imported: every call checks the shapes and dtypes that its annotations give.
CHECKED = ["emu_jax.process", "emu_jax.parallel"]
jaxtyping.install_import_hook(CHECKED, "typechecks.check")


@pytest.fixture(autouse=True)
def _numpy_seed():
    """A test that draws from numpy's global generator draws the same in any order of tests."""
    import numpy as np

    np.random.seed(0)


@pytest.fixture(scope="module")
def quick():
    """Of modules that run whole programs (``runs.quick``)."""
    import runs

    with runs.quick():
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The data_dir of a small ``folder/tiny``, captioned pictures, built by the real command."""
    import numpy as np
    from PIL import Image, ImageDraw

    from emu_jax.cli.main import main

    folder = tmp_path_factory.mktemp("pictures")
    colours = ("red", "green", "blue", "orange", "purple", "black")
    for i, colour in enumerate(colours * 4):
        image = Image.new("RGB", (72, 64), "white")
        corner = np.random.default_rng(i).integers(0, 30, 2).tolist()
        ImageDraw.Draw(image).ellipse([*corner, corner[0] + 30, corner[1] + 30], fill=colour)
        image.save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {colour} disc\n{colour} ball\n")
    data_dir = tmp_path_factory.mktemp("data")
    arguments = ["data", "build", "folder/tiny", f"--path={folder}", f"--data_dir={data_dir}"]
    assert main(arguments) == 0
    return data_dir


@pytest.fixture(scope="session")
def autoencoder_run(pictures, tmp_path_factory):
    """The workdir of a minuscule autoencoder, trained by the real command and saved at 2 and 4."""
    import runs

    workdir = tmp_path_factory.mktemp("runs") / "autoencoder"
    runs.train("autoencoder", workdir, pictures, "--config.train.steps=4")
    return workdir


@pytest.fixture(scope="session")
def generator_run(pictures, autoencoder_run, tmp_path_factory):
    """The workdir of a minuscule generator that works in ``autoencoder_run``'s latents.

    Its rate is so high that four steps are enough for its pictures to differ by prompt.
    """
    import runs

    workdir = tmp_path_factory.mktemp("runs") / "generator"
    more = (
        f"--config.codec.path={autoencoder_run}",
        "--config.train.steps=4",
        "--config.groups.generator.optimizer.learning_rate=0.1",
    )
    runs.train("latent_diffusion", workdir, pictures, *more)
    return workdir


@pytest.fixture(scope="session")
def judge_run(pictures, tmp_path_factory):
    """The workdir of a minuscule judge."""
    import runs

    workdir = tmp_path_factory.mktemp("runs") / "judge"
    runs.train("judge", workdir, pictures)
    return workdir
