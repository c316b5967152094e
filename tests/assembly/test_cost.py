"""What training on a picture costs, against the forward pass."""

import jax
import runs

from emu_jax.assembly.autoencoding import autoencoder_factor
from emu_jax.assembly.config import read
from emu_jax.assembly.cost import training_flops
from emu_jax.assembly.tasks import make_task
from emu_jax.parallel.mesh import make_mesh
from emu_jax.planning.flops import count_flops
from emu_jax.planning.inputs import abstract_frozen


def test_a_picture_is_trained_on_by_a_forward_and_a_backward_pass():
    config = read(f"{runs.ROOT}/configs/pixel_diffusion.py:size=test,part=base")
    config.data.cache_text = True  # what is left is the denoiser
    config.train.batch_size = 2 * jax.device_count() + 1  # equal shares of it there are not
    task, mesh = make_task(config).prepare(None), make_mesh()

    def call(params, x, t):
        by = task.condition(params, task.null, jax.numpy.zeros((1, 6), int))
        return task.denoise(params, x, t, by)

    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    x, t = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"), jax.ShapeDtypeStruct((1,), "float32")
    forward = count_flops(call, shapes, x, t)
    trained = training_flops(config, task, abstract_frozen(task, mesh), mesh)
    assert 0.9 * 3 * forward < trained < 3 * forward  # the first layer's input has no gradient


def test_a_codebook_is_counted():
    """Per place and code, in both groups' losses: the distance, and what the code follows."""
    config = read(f"{runs.ROOT}/configs/autoencoder.py:size=test,kind=vq")
    found = []
    for codes in (64, 128):
        config.quantizer.codes = codes
        task, mesh = make_task(config).prepare(None), make_mesh()
        found.append(training_flops(config, task, abstract_frozen(task, mesh), mesh))
    places = (config.data.image_size // autoencoder_factor(config)) ** 2
    times = (found[1] - found[0]) / (64 * 2 * config.latent_channels * places)
    assert times == 2 * len(task.groups) == 4
