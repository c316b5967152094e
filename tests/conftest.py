"""Every test runs on the CPU; a child process that a test starts inherits the same.

Most of the suite's time is compilation. XLA skips most optimizations, except in modules that are
marked ``optimized``, and generates code without its fusion emitters, which take longer: the results
are the same up to rounding. Each program is compiled once, and then read from a folder that all
processes of the suite share and the first of them removes. The rest is mostly tracing, where the
garbage collector took a sixth of the time and the stack traces of every operation a twentieth.
"""

import atexit
import ctypes
import fcntl
import gc
import os
import resource
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest

from emu_jax.parallel.compiler import set_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning in forked readers
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="emu_jax-programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import jax
import jaxtyping
from typechecks import MODULES

gc.set_threshold(100_000, 20, 50)
set_flags()

# Also where something imported jax first.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def _optimized(request):
    """Programs of a module marked ``optimized`` are compiled as in production."""
    if not any(request.node.iter_markers("optimized")):
        yield
        return
    with mock.patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="0"):
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def _small_process():
    """Compiled programs stay in memory until they are dropped; those needed again are read from
    the shared folder.
    """
    yield
    if _memory() > 2 * 2**30:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _memory() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# Before emu_jax is imported: every call in these modules checks the shapes and dtypes that its
# annotations give.
jaxtyping.install_import_hook(MODULES, "typechecks.check")


@pytest.fixture
def unchecked_arrays():
    """For tests of functions that refuse wrong arrays themselves: annotations are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _numpy_seed():
    """A test that draws from numpy's global generator draws the same in any order of tests."""
    import numpy as np

    np.random.seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """``shared(name, make)``: a folder that ``make(folder)`` fills, once for all workers of pytest.

    It is read by many tests: whoever changes it makes a copy.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name, make):
        path, complete = root / name, root / f"{name}.complete"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                shutil.rmtree(path, ignore_errors=True)  # of an attempt that failed
                path.mkdir()
                make(path)
                complete.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def pictures(shared):
    """The data_dir of a small ``folder/tiny``, captioned images, built by the real command; in it
    the ``text_encoder`` of whole runs.
    """
    return shared("data", build_images)


def build_images(data_dir):
    import numpy as np
    import runs
    from PIL import Image, ImageDraw

    from emu_jax.cli.main import main

    runs.text_encoder(data_dir / "text_encoder")
    folder = data_dir / "source"
    folder.mkdir()
    colours = ("red", "green", "blue", "orange", "purple", "black")
    for i, colour in enumerate(colours * 4):
        image = Image.new("RGB", (72, 64), "white")
        corner = np.random.default_rng(i).integers(0, 30, 2).tolist()
        ImageDraw.Draw(image).ellipse([*corner, corner[0] + 30, corner[1] + 30], fill=colour)
        image.save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {colour} disc\n{colour} ball\n")
    arguments = ["data", "build", "folder/tiny", f"--path={folder}", f"--data_dir={data_dir}"]
    assert main(arguments) == 0


@pytest.fixture(scope="session")
def autoencoder_run(shared, pictures):
    """The workdir of a minuscule autoencoder, trained by the real command and saved at 2 and 4."""
    import runs

    more = "--config.train.steps=4"
    return shared("autoencoder", lambda workdir: runs.train("autoencoder", workdir, pictures, more))


@pytest.fixture(scope="session")
def generator_run(shared, pictures, autoencoder_run):
    """The workdir of a minuscule generator that works in ``autoencoder_run``'s latents.

    Its rate is so high that four steps are enough for its images to differ by prompt.
    """
    import runs

    more = (
        f"--config.codec.path={autoencoder_run}",
        "--config.train.steps=4",
        "--config.groups.generator.optimizer.learning_rate=0.1",
    )
    return shared(
        "generator", lambda workdir: runs.train("latent_diffusion", workdir, pictures, *more)
    )


@pytest.fixture(scope="session")
def control_run(shared, pictures, autoencoder_run, generator_run):
    """The workdir of a ControlNet of ``generator_run``'s that follows edges."""
    import runs

    given = pictures, generator_run, autoencoder_run
    return shared("control", lambda workdir: runs.train_control(workdir, *given))


@pytest.fixture
def movable_run(autoencoder_run, generator_run, pictures, tmp_path):
    """Copies of a generator's ``run`` and of its ``codec`` and ``text`` encoder, in a folder that a
    test may change.
    """
    place = tmp_path / "here"
    sources = dict(codec=autoencoder_run, text=pictures / "text_encoder", run=generator_run)
    for name, source in sources.items():
        shutil.copytree(source, place / name)
    for record in (place / "run").glob("checkpoints/*/meta/metadata"):
        text = record.read_text()
        for name, source in sources.items():
            assert name == "run" or str(source) in text
            text = text.replace(str(source), str(place / name))
        record.write_text(text)
    return place


@pytest.fixture(scope="session")
def judge_run(shared, pictures):
    """The workdir of a minuscule judge."""
    import runs

    return shared("judge", lambda workdir: runs.train("judge", workdir, pictures))


@pytest.fixture(scope="session")
def scenes(shared):
    """The data_dir of ``scenes/openmoji_tiny``."""
    from emu_jax.cli.main import main

    build = ["data", "build", "scenes/openmoji_tiny"]
    return shared("scenes", lambda folder: main([*build, f"--data_dir={folder}"]))


@pytest.fixture(scope="session")
def parser_run(shared, scenes):
    """The workdir of a minuscule parser of scenes, saved at 2 and 4."""
    import runs

    return shared("parser", lambda workdir: runs.train_parser(workdir, scenes))


@pytest.fixture(scope="session")
def deeplab_run(shared, scenes):
    """The same of a parser that gives every pixel a label."""
    import runs

    return shared("deeplab", lambda workdir: runs.train_parser(workdir, scenes, "deeplab"))


@pytest.fixture(scope="session")
def preferences(shared):
    """The data_dir of ``preferences/openmoji_tiny``."""
    from emu_jax.cli.main import main

    build = ["data", "build", "preferences/openmoji_tiny"]
    return shared("preferences", lambda folder: main([*build, f"--data_dir={folder}"]))


@pytest.fixture(scope="session")
def reward_run(shared, pictures, preferences):
    """The workdir of a minuscule reward with an output for each dimension, saved at 2 and 4."""
    import runs

    return shared("reward", lambda workdir: runs.train_reward(workdir, preferences, pictures))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Starts commands as processes without the time that their imports take."""
    from nursery import Nursery

    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()
