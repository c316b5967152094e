"""Segment Anything against transformers' SamModel with random weights, from its own folder."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamConfig, SamModel

from emu_jax.assembly.subject import Subject
from emu_jax.errors import UserError
from emu_jax.evaluation.sam import SegmentAnything

VISION = dict(
    hidden_size=24,
    output_channels=16,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=40,
    patch_size=4,
    window_size=4,  # ten patches a side: windows are padded
    global_attn_indexes=[1],
    num_pos_feats=8,
    mlp_ratio=2.0,
)
PROMPT = dict(hidden_size=16, image_size=40, patch_size=4, mask_input_channels=8)
DECODER = dict(
    hidden_size=16,
    mlp_dim=20,
    num_attention_heads=2,
    iou_head_hidden_dim=12,
    num_multimask_outputs=3,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model whose every parameter is random, and its folder."""
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER
    )
    model = SamModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("prompt", ["points", "box"])
def test_masks_and_their_quality(published, prompt):
    model, folder = published
    x = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    points = np.array([[[3.0, 30.0], [20.0, 11.0]], [[35.0, 2.0], [6.0, 6.0]]], np.float32)
    kinds = np.array([[1, 0], [0, 1]])
    box = np.array([[2.0, 5.0, 30.0, 38.0], [0.0, 0.0, 12.0, 20.0]], np.float32)
    inputs = dict(input_points=torch.tensor(points)[:, None])
    inputs |= dict(input_labels=torch.tensor(kinds)[:, None])
    if prompt == "box":  # beside points: there is no padding
        inputs |= dict(input_boxes=torch.tensor(box)[:, None])
    with torch.no_grad():
        expected = model(torch.tensor(x).permute(0, 3, 1, 2), **inputs)
    ours = SegmentAnything(str(folder))
    boxes = None if prompt == "points" else jnp.asarray(box)
    masks, quality = ours._run(ours._params, jnp.asarray(x), points, kinds, boxes)
    assert masks.shape == (2, 3, 40, 40) and float(jnp.std(masks)) > 0.1
    np.testing.assert_allclose(masks, expected.pred_masks[:, 0].numpy(), atol=1e-4)
    np.testing.assert_allclose(quality, expected.iou_scores[:, 0].numpy(), atol=1e-4)


def test_an_image_of_any_size_gets_a_mask_of_its_own(published):
    """As transformers' processor prepares it: the longer side has the network's size."""
    image = np.random.default_rng(1).integers(0, 256, (30, 60, 3), np.uint8)
    mask = SegmentAnything(str(published[1]))(image, [(10, 20)])
    assert mask.shape == (30, 60) and mask.dtype == bool
    with pytest.raises(UserError, match=r"give --click=X,Y or --box"):
        Subject(segmenter=str(published[1])).of(Image.fromarray(image), "x.png")
