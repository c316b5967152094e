"""Starting from another network's parameters: what is reused, and that nothing is lost in
silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoint.transplant import transplant
from emu_jax.errors import UserError

TARGET = {
    "denoiser/conv_in/kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32),
    "denoiser/mid/kernel": jax.ShapeDtypeStruct((16, 16), jnp.float32),
    "conditioner/adapter/kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32),
}


def source(**changes):
    params = {
        "denoiser/conv_in/kernel": np.full((3, 3, 8, 16), 2.0, np.float32),
        "denoiser/mid/kernel": np.full((16, 16), 3.0, np.float32),
        "denoiser/old/bias": np.zeros(16, np.float32),
    }
    return {**params, **changes}


def test_what_fits_is_reused_and_the_rest_named():
    reused, report = transplant(TARGET, source())
    assert reused.keys() == {"denoiser/conv_in/kernel", "denoiser/mid/kernel"}
    assert (reused["denoiser/mid/kernel"] == 3).all()
    assert report.reused == ("denoiser/conv_in/kernel", "denoiser/mid/kernel")
    assert report.fresh == ("conditioner/adapter/kernel",)
    assert report.unused == ("denoiser/old/bias",)
    assert report.mismatched == ()
    assert str(report) == (
        "reused 2 arrays, 1,408 parameters\n"
        "started anew 1 arrays, 16 parameters: conditioner/adapter (1)\n"
        "left 1 arrays of the source: denoiser/old (1)"
    )


def test_another_shape_is_an_error_unless_skipped():
    narrow = {"denoiser/conv_in/kernel": np.zeros((3, 3, 4, 16), np.float32)}
    with pytest.raises(UserError, match=r"denoiser/conv_in/kernel is .3, 3, 4, 16. in the source"):
        transplant(TARGET, source(**narrow))
    reused, report = transplant(TARGET, source(**narrow), skip="conv_in")
    assert reused.keys() == {"denoiser/mid/kernel"}
    assert report.mismatched == ("denoiser/conv_in/kernel",)
    assert report.fresh == ("denoiser/conv_in/kernel", "conditioner/adapter/kernel")
    assert "1 because the shape differs" in str(report)


def test_skip_starts_anew_what_would_fit():
    reused, report = transplant(TARGET, source(), skip="mid/")
    assert reused.keys() == {"denoiser/conv_in/kernel"} and report.mismatched == ()
    assert "denoiser/mid/kernel" in report.fresh and "denoiser/mid/kernel" in report.unused


def test_rename_in_turn():
    theirs = {"unet/" + name.removeprefix("denoiser/"): v for name, v in source().items()}
    rename = [("^unet/", "net/"), (r"^net/(\w+)", r"denoiser/\1")]
    reused, _ = transplant(TARGET, theirs, rename=rename)
    assert reused.keys() == {"denoiser/conv_in/kernel", "denoiser/mid/kernel"}


def test_the_targets_dtype():
    half = {name: jnp.asarray(value, jnp.bfloat16) for name, value in source().items()}
    reused, _ = transplant(TARGET, half)
    assert {value.dtype for value in reused.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("params", "options", "words"),
    [
        ({"other/kernel": np.ones(3)}, {}, "source has other/kernel, the model denoiser/conv_in"),
        ({}, {}, "the source has none"),
        (source(), {"skip": "convin"}, "skips 'convin', which matches no parameter"),
        (source(), {"rename": [("unet", "x")]}, "renames 'unet', which matches no parameter"),
        (source(), {"rename": [("conv_in|mid", "x")]}, "renames two parameters .* denoiser/x"),
        (source(), {"skip": "denoiser"}, "no parameter of the source"),
    ],
)
def test_mistakes_are_one_sentence(params, options, words):
    with pytest.raises(UserError, match=words) as error:
        transplant(TARGET, params, **options)
    assert "\n" not in str(error.value)


def test_names_are_shortened():
    many = {f"denoiser/block{i}/kernel": TARGET["denoiser/mid/kernel"] for i in range(40)}
    _, report = transplant({**TARGET, **many}, source())
    assert max(map(len, str(report).splitlines())) < 220 and "35 more" in str(report)
