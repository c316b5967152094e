"""A trained parser as a detector: labels, scores, and masks in the size of each image."""

import jax.numpy as jnp
import numpy as np

from emu_jax.assembly.segmenter import Segmenter, open_reader
from emu_jax.data.scenes_things import THINGS
from emu_jax.evaluation.contents import asked_by, read
from emu_jax.evaluation.prompt_sets import open_prompts
from emu_jax.nn.solo import Level
from emu_jax.tasks.solo import Instances, assign


def test_masks_have_the_size_of_the_image(parser_run, monkeypatch):
    """The network's output is put in its place: thing 3 above, thing 5 below."""
    parser = Segmenter(str(parser_run), batch_size=2)
    truth = np.zeros((32, 32), np.uint8)
    truth[2:12, 2:12], truth[18:30, 15:29] = 1, 2
    cells = np.asarray(assign(Instances(jnp.asarray([truth]), jnp.array([[3, 5]])), 8, (0, 1e9))[0])
    classes, masks = np.full((8, 8, 60), -20.0), np.full((32, 32, 64), -20.0)
    for i, j in np.argwhere(cells >= 0):
        classes[i, j, [3, 5][cells[i, j]]] = 2.0 + cells[i, j]
        masks[truth == cells[i, j] + 1, i * 8 + j] = 20
    level = Level(jnp.asarray([classes] * 2), jnp.asarray([masks] * 2))
    monkeypatch.setattr("emu_jax.tasks.segmentation.Segmentation.levels", lambda *_: [level])
    sizes = [(64, 64), (128, 128), (32, 48)]
    found = parser([np.zeros((*size, 3), np.uint8) for size in sizes])
    words = list(THINGS)
    for (h, w), seen in zip(sizes, found, strict=True):
        # The best first.
        assert [one.label for one in seen] == [words[5], words[3]]
        assert np.allclose([one.score for one in seen], 1 / (1 + np.exp([-3.0, -2.0])), atol=1e-3)
        for one, number in zip(seen, (2, 1), strict=True):
            assert one.mask.shape == (h, w)
            rows, columns = np.arange(h) * 32 // h, np.arange(w) * 32 // w
            assert np.mean(one.mask != (truth == number)[rows][:, columns]) < 0.01
    assert found[0][0].box == (30, 36, 58, 60)


def test_the_shipped_parser_reads_real_scenes(scenes):
    """Nearly all of one or two things; it is the default for prompts that say what they ask for."""
    prompts = open_prompts("scenes/openmoji_tiny:kind == single|color|two", data_dir=str(scenes))
    asked = asked_by(prompts.columns)
    reader = open_reader(None, asked)
    assert reader is not None and reader[0].name == "builtin:parser_64"
    assert prompts.real is not None and len(asked) == len(prompts) == 30
    found = read(list(prompts.real.read((64, 64))), asked, *reader)
    assert np.mean([all(answers.values()) for answers in found.answers.values()]) > 0.9
    assert open_reader(None, {}) is None
