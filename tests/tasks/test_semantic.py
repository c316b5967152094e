"""Semantic segmentation: labels, loss and gradient against torch, and the teacher of layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import torch
import torchvision_models
from torch.nn.functional import cross_entropy as torch_cross_entropy

from emu_jax.assembly.segmentation import deeplab
from emu_jax.assembly.teachers import make_layout
from emu_jax.data.coco_classes import CLASSES
from emu_jax.data.mixture import Vocabulary
from emu_jax.errors import UserError
from emu_jax.nn.torch_layout import torch_key
from emu_jax.parallel.placement import ONE_DEVICE
from emu_jax.tasks.semantic import IGNORED, Labels, SemanticSegmentation, cross_entropy
from emu_jax.tasks.teachers import Segmenter


def test_labels_follow_from_instances():
    """Labels 0, 3 and 7 of the background and two classes; the fourth instance is unknown."""
    labels = Labels("things", Vocabulary(("cat", "dog"), 3), (3, 7))
    rows = {
        "further": {"instances": jnp.array([[[0, 1, 2], [3, 4, 255]]], jnp.uint8)},
        "columns": {"things": jnp.array([[1, 0, -1]])},
    }
    assert labels(rows).tolist() == [[[0, 7, 3], [IGNORED, IGNORED, IGNORED]]]
    assert labels.rows.further == ("instances",) and list(labels.rows.columns) == ["things"]
    mask = Labels()
    assert mask.rows.further == ("mask",) and not mask.rows.columns
    assert mask({"further": {"mask": jnp.array([[[5, 255]]], jnp.uint8)}}).tolist() == [[[5, 255]]]


def test_no_pixel_that_counts_is_no_loss():
    logits, labels = jnp.ones((1, 2, 2, 3)), jnp.full((1, 2, 2), IGNORED)
    value, gradient = jax.value_and_grad(cross_entropy)(logits, labels)
    assert value == 0 and not gradient.any()


def test_loss_and_gradient_equal_those_of_torch():
    """On random logits; the teacher's loss is that of its network's logits, and reaches images."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (2, 5, 6, 4)).astype(np.float32)
    labels = random.choice([0, 1, 2, 3, IGNORED], (2, 5, 6))
    value, gradient = jax.value_and_grad(cross_entropy)(jnp.asarray(logits), jnp.asarray(labels))
    theirs = torch.tensor(logits, requires_grad=True)
    expected = of_torch(theirs, labels)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)

    small = deeplab(4, dict(depths=(1, 1, 1, 1), width=2, rates=(1, 2), channels=4))
    task = SemanticSegmentation(network=small, labels=Labels(), groups={}, frozen={})
    params, _ = task.init(jax.random.key(0))
    rows = {"further": {"mask": jnp.asarray(labels.repeat(4, 1).repeat(4, 2), jnp.uint8)}}
    image = jnp.asarray(random.uniform(-1, 1, (2, 20, 24, 3)), jnp.float32)

    @jax.jit
    def teach(image):
        loss, gradient = jax.value_and_grad(lambda x: Segmenter(task).loss(params, x, rows))(image)
        return loss, gradient, small(params, image)

    value, gradient, logits = teach(image)
    expected = of_torch(torch.tensor(np.asarray(logits)), rows["further"]["mask"])
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert (jnp.abs(gradient).sum((1, 2, 3)) > 0).all()


def test_a_teacher_reduces_images_and_maps_to_its_own_size():
    """Images of one color, and maps in blocks of 2 x 2 pixels, are the same in half the size."""
    random = np.random.default_rng(0)
    small = deeplab(4, dict(depths=(1, 1, 1, 1), width=2, rates=(1, 2), channels=4))
    task = SemanticSegmentation(network=small, labels=Labels(), groups={}, frozen={})
    params, _ = task.init(jax.random.key(0))
    image = jnp.tile(jnp.asarray(random.uniform(-1, 1, (2, 1, 1, 3)), jnp.float32), (1, 20, 20, 1))
    labels = random.choice([0, 1, 2, 3, IGNORED], (2, 20, 20)).astype(np.uint8)
    own = {"further": {"mask": labels}}
    large = {"further": {"mask": labels.repeat(2, 1).repeat(2, 2)}}
    double = jnp.tile(image, (1, 2, 2, 1))
    expected = Segmenter(task, 20).loss(params, image, own)
    assert float(Segmenter(task, 30).loss(params, image, own)) == float(expected)
    assert not np.isclose(Segmenter(task).loss(params, double, large), expected, rtol=1e-3)
    reduced = Segmenter(task, 20).loss(params, double, large)
    assert float(reduced) == pytest.approx(float(expected), rel=1e-4)


def of_torch(logits, labels):
    labels = torch.tensor(np.asarray(labels, np.int64))
    return torch_cross_entropy(logits.permute(0, 3, 1, 2), labels, ignore_index=IGNORED)


def published(file, labels):
    """torchvision's DeepLab-V3 with the second head of its training; one value for each tensor."""
    make = torchvision_models.models().segmentation.deeplabv3_resnet50
    with torch.device("meta"):
        model = make(weights=None, weights_backbone=None, num_classes=labels, aux_loss=True)
    state = {
        name: torch.tensor(float(i)).expand(x.shape)
        for i, (name, x) in enumerate(model.state_dict().items())
    }
    torch.save(state, file)
    return state


def test_files_of_torchvision(tmp_path):
    """VOC's labels by COCO's names of classes, other labels by their order, or those of masks."""
    file = tmp_path / "deeplabv3_resnet50_coco.pth"
    given = dict(path=str(file), column="classes", most=4)
    state = published(file, 21)
    layout, weights = make_layout(ONE_DEVICE, classes=CLASSES, **given)
    names = {torch_key(name): x for name, x in weights.tensors()}
    assert {name: x.flat[0] for name, x in names.items()} == {
        name: float(x.reshape(-1)[0])
        for name, x in state.items()
        if not name.startswith("aux_classifier.") and "num_batches" not in name
    }
    words = ("airplane", "tie", "tv", "person")
    numbers = [layout.segmentation.labels.numbers[CLASSES.index(word)] for word in words]
    assert numbers == [1, 0, 20, 15]
    assert sum(number > 0 for number in layout.segmentation.labels.numbers) == 20

    published(file, 5)
    with pytest.raises(
        UserError, match=r"gives 5 labels, and teachers\.layout\.classes has 2 names"
    ):
        make_layout(ONE_DEVICE, classes=("cat", "dog"), **given)
    assert make_layout(ONE_DEVICE, classes=(), **given)[0].further == ("mask",)
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="is no DeepLab-V3"):
        make_layout(ONE_DEVICE, classes=(), **given)


def test_a_trained_run_is_a_teacher(deeplab_run):
    logged = {key for line in runs.lines(deeplab_run / "metrics.jsonl") for key in line}
    assert {"parser/loss", "unseen/loss", "unseen/right", "unseen/objects"} <= logged
    assert list((deeplab_run / "images").glob("unseen_labels*.png"))
    given = dict(column="classes", classes=(), most=4)  # of files: a run has its own
    layout, weights = make_layout(ONE_DEVICE, path=str(deeplab_run), **given)
    assert list(layout.columns) == ["things"] and layout.columns["things"].most == 6
    assert weights.shapes["classifier/4/bias"].shape == (61,)
    with pytest.raises(UserError, match="not semantic_segmentation"):
        make_layout(ONE_DEVICE, path=f"{runs.ROOT}/configs/parser.py:size=test", **given)
