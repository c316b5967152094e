"""What every imported pipeline is asked: to be the same files again, and to be tuned."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import torch
from diffusers import DiffusionPipeline

from emu_jax.assembly.generator import Generator
from emu_jax.assembly.initial import initial
from emu_jax.assembly.tasks import open_task
from emu_jax.checkpoint.export import save_model
from emu_jax.cli.main import main
from emu_jax.nn.stack import unstacked
from emu_jax.parallel.mesh import make_mesh
from emu_jax.tasks.base import Context, encoders_of

# Little is spent on optimising what runs once.
QUICK = dict(
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
)
_ASIDE = {"_name_or_path", "_diffusers_version", "_use_default_values"}


def there_and_back(source: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(``source``, our import of it, the export of that), the last two in ``folder``."""
    ours, back = folder / "ours", folder / "back"
    assert main(["import", str(source), f"--out={ours}"]) == 0
    return source, ours, export(ours, back)


def export(model: Path, out: Path) -> Path:
    assert main(["export", str(model), f"--out={out}", "--format=diffusers"]) == 0
    return out


def quick_generator(folder: Path, **options: Any) -> Generator:
    """A generator for two prompts, whose program compiles quickly."""
    generator = Generator(str(folder), batch_size=2, **options)
    generator._generate = jax.jit(generator._draw_batch, static_argnames="decode", **QUICK)
    return generator


def opened(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def far(a, b) -> float:
    """Relative error."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_same_files(source: Path, back: Path, weights: int) -> None:
    """Tensors bit by bit, settings by their meaning as JSON, other files byte by byte; so many
    files of ``weights``."""
    files = sorted(f.relative_to(source) for f in source.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(back) for f in back.rglob("*") if f.is_file())
    assert sum(f.suffix == ".safetensors" for f in files) == weights
    for file in files:
        if file.suffix == ".json":
            before, after = (json.loads((x / file).read_text()) for x in (source, back))
            if file.name == "model_index.json":
                assert before.pop("_diffusers_version")
                after.pop("_diffusers_version", None)
            assert before == after, file
        elif file.suffix == ".safetensors":
            before, after = (safetensors.torch.load_file(x / file) for x in (source, back))
            assert before.keys() == after.keys()
            for key, value in before.items():
                assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
        else:
            assert (source / file).read_bytes() == (back / file).read_bytes()


def without_source(ours: Path, target: Path) -> Path:
    """A copy of an import without the public config files, as a run trained from it has none."""
    for folder in (ours, ours / "codec"):
        copy = target / folder.relative_to(ours)
        copy.mkdir(parents=True)
        (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        config = json.loads((folder / "config.json").read_text())
        assert config.pop("source")
        if folder == ours:
            config["config"]["codec"]["path"] = str(target / "codec")
            for options in config["config"]["text"].values():
                options["path"] = str(ours / options["path"])
        (copy / "config.json").write_text(json.dumps(config))
    return target


def assert_same_settings(before: Any, after: Any, parts, free=()) -> None:
    """What diffusers makes of two pipelines' config files; ``free``: may differ."""
    for part in parts:
        a, b = (dict(getattr(pipeline, part).config) for pipeline in (before, after))
        names = a.keys() - _ASIDE - set(free)
        differ = {key: (a[key], b[key]) for key in names if _plain(a[key]) != _plain(b[key])}
        assert not differ, (part, differ)


def _plain(value):
    """One value for all stages is as good as one each."""
    if isinstance(value, tuple | list):
        same = len(value) > 0 and all(x == value[0] for x in value)
        return value[0] if same else list(value)
    return value


def slopes(config, prompts: list[str]) -> tuple[Any, dict, dict]:
    """(task, parameters, their gradients) of two rows, the parameters where training starts."""
    mesh, side = make_mesh(), config.data.image_size
    task, frozen = open_task(config, mesh)
    params, _ = initial(config, task, mesh)
    rows = dict(
        image=np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8),
        sizes=np.array([[side + 2, side + 1, 1, 0, side, side]] * 2),
        tokens={name: encoder.tokenize(prompts) for name, encoder in encoders_of(task).items()},
    )

    def loss(params):
        batch, key = dict(train=rows), jax.random.key(1)
        return task.loss("generator", Context(params, frozen, {}, batch, key)).value

    found = jax.jit(jax.grad(loss), **QUICK)(params)
    assert all(np.all(np.isfinite(slope)) for slope in found.values())
    return task, params, {path: np.asarray(slope) for path, slope in found.items()}


def export_tuned(config, params: dict, slopes: dict, folder: Path) -> Path:
    """A step down the slopes, saved as a run's model and exported."""
    tuned = {path: np.asarray(value) - 0.01 * slopes[path] for path, value in params.items()}
    save_model(f"{folder}/run", unstacked(tuned), config.to_dict(), {"step": 1}, dtype=None)
    return export(folder / "run", folder / "out")
