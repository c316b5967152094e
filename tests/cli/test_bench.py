"""``emu-jax bench`` as a whole, on a step that compiles in seconds; and what it refuses."""

import json

import jax
import pytest
import runs

from emu_jax.assembly.config import read
from emu_jax.assembly.tasks import make_task
from emu_jax.cli.main import main
from emu_jax.planning.flops import count_flops

CONFIG = f"--config={runs.ROOT}/configs/pixel_diffusion.py:size=test,part=base"
# Pixels and a stage of two residual blocks down, three up and two between: nothing else to compile.
SMALL = {
    "data.image_size": 8,
    "data.cache_latents": True,
    "data.cache_text": True,
    "denoiser.widths": (8,),
    "denoiser.transformer_depth": (0,),
    "denoiser.mid_depth": 0,
}
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]


def test_a_step_and_a_sampler(tmp_path, capsys):
    arguments = [CONFIG, f"--out={tmp_path}", "--repeats=4", "--warmup=1", "--pictures=3"]
    assert main(["bench", *arguments, *OVERRIDES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "sample", "report"]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["device"] == "cpu" and found["devices"] == jax.device_count()
    assert found["compute_dtype"] == "float32" and found["mesh"]["fsdp"] == 1

    for name, images in (("train", 8), ("sample", 3)):
        speed = found[name]
        seconds, devices = speed["seconds"], found["devices"]
        assert speed["images"] == images
        assert len(speed["every_seconds"]) == 4
        assert 0 < speed["seconds_10"] <= seconds <= speed["seconds_90"]
        assert min(speed["every_seconds"]) <= speed["seconds_10"]
        a_call = speed["tflops_per_second_a_device"] * 1e12 * devices * seconds
        assert a_call == pytest.approx(speed["model_flops"])
        assert speed["images_per_second_a_device"] * devices * seconds == pytest.approx(images)
        assert speed["mfu"] is None  # of a CPU no peak is known, and it is said so
        assert speed["compile_seconds"] > 0
        (line,) = (line for line in lines if line.startswith(name))
        assert f"{1e3 * seconds:.4g} ms" in line
        assert "MFU unknown (no peak FLOP/s known for cpu)" in line

    # A picture is drawn by two steps of guided denoising: four calls of the network.
    config = read(CONFIG.removeprefix("--config="))
    with config.ignore_type():
        config.update_from_flattened_dict(SMALL)
    task = make_task(config).prepare(None)

    def call(params, x, t):
        by = task.condition(params, task.null, jax.numpy.zeros((1, 6), int))
        return task.denoise(params, x, t, by)

    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    x, t = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((1,), "float32")
    assert found["sample"]["model_flops"] == pytest.approx(
        3 * 4 * count_flops(call, shapes, x, t), rel=0.01
    )
    # Forward and backward, the first layer's input excepted.
    of_training = 8 * 3 * count_flops(call, shapes, x, t)
    assert 0.9 * of_training < found["train"]["model_flops"] < of_training


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG], "needs --out=DIR"),
        ([CONFIG, "--out=x", "--measure=speed"], "measure"),
        ([CONFIG, "--out=x", "--repeats=0"], "repeats"),
        ([f"--config={runs.ROOT}/configs/judge.py:size=test", "--out=x"], "use --measure=train"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_sentence(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
