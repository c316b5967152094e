"""``emu-jax plan`` as a whole, on a step that compiles in seconds; and what it refuses."""

import json

import jax
import pytest
import runs

from emu_jax.cli.main import main

pytest.importorskip("libtpu")  # the compiler: Linux on x86 only

CONFIG = f"--config={runs.ROOT}/configs/latent_diffusion.py:size=test"
# One stage, nothing but the denoiser: a text encoder and a codec would take a minute to compile.
SMALL = (
    "--config.mesh.fsdp=4",
    "--config.data.cache_latents=True",
    "--config.data.cache_text=True",
    "--config.denoiser.widths=(8,)",
    "--config.denoiser.mid_depth=0",
)


@pytest.fixture
def stack_traces():
    """Of every operation, by which a profile finds its module; other tests go without."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 100)
    yield
    jax.config.update("jax_traceback_in_locations_limit", limit)


def test_a_plan_of_a_generators_step(stack_traces, tmp_path, capsys):
    arguments = [CONFIG, "--topology=v5e:2x2", f"--out={tmp_path}", "--profile", *SMALL]
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "data 1 x fsdp 4" in out and "v5e:2x2 sends per step" in out and "backward" in out

    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] and plan["chips"] == 4 and plan["batch_size"] == 8
    memory = plan["memory"]
    assert 0 < memory["aliased"] <= memory["arguments"] < memory["peak"] < plan["capacity"]
    assert plan["model_flops"] > 0
    assert plan["mfu"] == pytest.approx(plan["model_flops"] / 4 / plan["modelled_seconds"] / 197e12)
    assert {"all-reduce"} <= {one["kind"] for one in plan["collectives"]}
    for by in ("part", "sort", "module"):
        total = sum(plan["profile"][by].values())
        assert total == pytest.approx(plan["modelled_seconds"])
    assert {"forward", "backward", "optimiser", "average"} <= plan["profile"]["part"].keys()
    assert {"matrix product", "convolution"} <= plan["profile"]["sort"].keys()
    assert any("ResnetBlock" in module for module in plan["profile"]["module"])

    page = (tmp_path / "index.html").read_text()
    for words in ("v5e:2x2", "Traffic", "Where the time of the step goes", "<svg", "ResnetBlock"):
        assert words in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--topology=v5e:2x2", "--out=x", "--config.mesh.fsdp=3"],
            "fsdp=3, slices=1 does not fit 4",
        ),
        (["--topology=v5e:4x4", "--out=x"], "A batch of 8 does not divide over 16 devices"),
        (
            ["--topology=v5e:2x2", "--out=x", "--slices=2", "--config.mesh.fsdp=8"],
            "2 must divide data=1",
        ),
        (["--topology=v5:2x2", "--out=x"], "There is no topology 'v5:2x2'"),
        (["--out=x"], "needs --topology="),
        (["--topology=v5e:2x2"], "needs --out=DIR"),
        (
            ["--topology=v5e:2x2", "--out=x", "--config.mesh.fspd=4"],
            "did you mean --config.mesh.fsdp",
        ),
        (["--topology=v5e:2x2", "--out=x", "--workdir=y"], "workdir"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arguments, words, capsys):
    assert main(["plan", CONFIG, *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_plan_of_a_sampler(tmp_path, capsys):
    config = f"--config={runs.ROOT}/configs/pixel_diffusion.py:size=test,part=base"
    small = (
        *("--config.data.image_size=8", "--config.data.cache_text=True"),
        *("--config.denoiser.widths=(8,)", "--config.denoiser.transformer_depth=(0,)"),
        *("--config.denoiser.mid_depth=0", "--config.sampling.steps=3"),
    )
    arguments = ["--topology=v5e:2x2", "--measure=sample", "--pictures=3", f"--out={tmp_path}"]
    assert main(["plan", config, *arguments, "--profile", *small]) == 0
    assert "v5e:2x2, sampler sends per sampler and chip" in capsys.readouterr().out
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measure"] == "sampler" and plan["batch_size"] == 3 and plan["fits"]
    assert plan["memory"]["outputs"] >= 8 * 8 * 3 and plan["modelled_seconds"] > 0
    assert {"steps"} <= plan["profile"]["part"].keys() <= {"steps", "decoder", "rest"}
    assert main(["plan", config.replace("pixel_diffusion", "judge").split(",")[0], *arguments]) == 2
    assert "use --measure=train" in capsys.readouterr().err
