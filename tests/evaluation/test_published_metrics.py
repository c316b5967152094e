"""Metrics of published networks, from files that the references wrote to columns, with random
weights: against the references on pictures that have been resized as they resize them.
"""

import encoders
import numpy as np
import pytest
import torch
from fidelity import module, randomize
from safetensors.torch import save_file
from transformers import CLIPTokenizer, Dinov2Config, Dinov2Model

from emu_jax.assembly.published_rewards import PUBLISHED, open_hps
from emu_jax.errors import UserError
from emu_jax.evaluation import clip_metrics, dinov2_features, preprocessing
from emu_jax.evaluation.measuring import Batch, open_metrics
from emu_jax.evaluation.preprocessing import CLIP_MEAN, CLIP_STD
from emu_jax.nn.resnet50 import IMAGENET_MEAN, IMAGENET_STD

PROMPTS = ["a red fox", "cat 7", "fox, fox"]
DRAWS = np.random.default_rng(0)
IMAGES = [
    DRAWS.integers(0, 256, size, np.uint8) for size in ((40, 33, 3), (33, 50, 3), (40, 33, 3))
]
BATCH = Batch(IMAGES, PROMPTS)


def channels_first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def clip_input(squares):
    return channels_first(preprocessing.normalized(squares, CLIP_MEAN, CLIP_STD))


def column(name, weights):
    return open_metrics([name], str(weights))[name].rows(*BATCH[:2])


def test_metrics_of_a_clip(tmp_path):
    folders = (clip_metrics.CLIP_SCORE, clip_metrics.PICKSCORE, clip_metrics.CMMD)
    model = encoders.clip_whole(tmp_path / clip_metrics.AESTHETIC_CLIP)
    for folder in folders:
        (tmp_path / folder).symlink_to(tmp_path / clip_metrics.AESTHETIC_CLIP)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / clip_metrics.CLIP_SCORE)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt")
    torch.manual_seed(0)
    head = torch.nn.Module()
    head.layers = torch.nn.Sequential(
        *(torch.nn.Linear(14, 1024), torch.nn.Dropout(), torch.nn.Linear(1024, 128)),
        *(torch.nn.Dropout(), torch.nn.Linear(128, 64), torch.nn.Dropout()),
        *(torch.nn.Linear(64, 16), torch.nn.Linear(16, 1)),
    ).eval()
    torch.save(head.state_dict(), tmp_path / clip_metrics.AESTHETIC_HEAD)
    with torch.no_grad():
        images, squares = (
            unit(model.get_image_features(clip_input(prepare(IMAGES, 12))).pooler_output)
            for prepare in (preprocessing.cropped, preprocessing.centered)
        )
        texts = unit(model.get_text_features(tokens["input_ids"]).pooler_output)
        rating = head.layers(images)[:, 0].numpy()
        scale = model.logit_scale.exp().item()
    cosines = (images * texts).sum(1).numpy()
    assert np.ptp(cosines) > 0.01 and np.ptp(rating) > 1e-4
    found = column("clip_score", tmp_path)
    np.testing.assert_allclose(found, cosines, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(column("pickscore", tmp_path), scale * cosines, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(column("laion_aesthetic", tmp_path), rating, rtol=1e-4, atol=1e-6)
    squares_of = preprocessing.cropped(IMAGES, 12)  # as rewards: in a step, with a gradient
    opened = PUBLISHED["pickscore"](str(tmp_path / clip_metrics.PICKSCORE))
    found = encoders.scores(opened, squares_of, PROMPTS)
    np.testing.assert_allclose(found, scale * cosines, rtol=1e-4, atol=1e-4)
    found = encoders.scores(PUBLISHED["laion_aesthetic"](str(tmp_path)), squares_of, PROMPTS)
    np.testing.assert_allclose(found, rating, rtol=1e-4, atol=1e-6)
    embedded = clip_metrics.CmmdEmbedding(str(tmp_path))(BATCH)
    np.testing.assert_allclose(embedded, squares.numpy(), atol=1e-5)
    # SUR-adapter's: softmax over the two images of a prompt. In fp64: in fp32 the exponential of
    # 100 times a cosine has an error of some 1e-6 itself.
    cosines = cosines.astype(np.float64)
    pair = np.exp(100 * np.stack([cosines, cosines[::-1]]))
    np.testing.assert_allclose(
        clip_metrics.preferred(cosines, cosines[::-1]), pair[1] / pair.sum(0), rtol=1e-6
    )


def openai_clip(layers, **sizes):
    """OpenAI's CLIP as IQA-PyTorch has it."""
    torch.manual_seed(0)
    model = module("archs.clip_model", "pyiqa").CLIP(
        embed_dim=12,
        image_resolution=32,
        vision_layers=layers,
        context_length=20,
        vocab_size=len(encoders.clip_vocabulary()),
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
        **sizes,
    )
    randomize(model)
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.add_(0.1 * torch.randn_like(x) if x.ndim < 2 and "scale" not in name else 0)
    return model.float()


def openai_texts(model, folder, texts):
    encoders.clip_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = torch.zeros(len(texts), 20, dtype=torch.int64)  # its own tokenizer pads with zeros
    for row, text in zip(ids, texts, strict=True):
        own = tokenizer(text)["input_ids"]
        row[: len(own)] = torch.tensor(own)
    return unit(model.encode_text(ids))


def test_clip_iqa(tmp_path):
    folder = tmp_path / clip_metrics.CLIP_IQA
    model = openai_clip((1, 1, 1, 1), vision_width=8, vision_patch_size=None)
    with torch.no_grad():
        anchors = openai_texts(model, folder, clip_metrics.ANTONYMS)
        want = [
            (model.logit_scale.exp() * unit(model.encode_image(x, False)) @ anchors.T).softmax(1)
            for x in (clip_input(image[None]) for image in IMAGES)
        ]
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / clip_metrics.OPENCLIP_FILE)
    want = torch.cat(want)[:, 0].numpy()
    assert np.ptp(want) > 1e-4
    np.testing.assert_allclose(column("clip_iqa", tmp_path), want, rtol=1e-4)


def test_hps_reads_a_file_of_openclip(tmp_path, monkeypatch):
    folder = tmp_path / clip_metrics.HPS
    model = openai_clip(2, vision_width=64, vision_patch_size=8)
    with torch.no_grad():
        texts = openai_texts(model, folder, PROMPTS)
        squares = preprocessing.padded(IMAGES, 32)
        want = (unit(model.encode_image(clip_input(squares), True)) * texts).sum(1).numpy()
    torch.save({"state_dict": model.state_dict()}, folder / clip_metrics.HPS_FILE)
    # The reference here has OpenAI's activation; HPS has the plain one.
    opened = clip_metrics.open_openclip
    monkeypatch.setattr(
        clip_metrics, "open_openclip", lambda a, b, act, c: opened(a, b, f"quick_{act}", c)
    )
    np.testing.assert_allclose(column("hps", tmp_path), want, rtol=1e-4, atol=1e-5)
    found = encoders.scores(open_hps(str(folder), "quick_gelu"), squares, PROMPTS)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    (folder / clip_metrics.HPS_FILE).unlink()
    opened.cache_clear()
    with pytest.raises(UserError, match=r"has no HPS_v2\.1_compressed\.pt"):
        column("hps", tmp_path)


def test_dinov2(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=28, patch_size=14
    )
    reference = Dinov2Model(config).eval()
    reference.save_pretrained(tmp_path / dinov2_features.FOLDER)
    squares = preprocessing.squashed(IMAGES, 42)
    x = preprocessing.normalized(squares, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        want = reference(channels_first(x)).pooler_output.numpy()
    found = dinov2_features.open_dinov2(tmp_path / dinov2_features.FOLDER, 42)(IMAGES)
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_missing_weights_are_one_sentence(tmp_path):
    for name, file in (
        ("kid", "weights-inception-2015-12-05-6726825d.pth"),
        ("fd_dinov2", "dinov2-large"),
        ("clip_score", "clip-vit-base-patch32"),
        ("laion_aesthetic", "clip-vit-large-patch14"),
        ("musiq", "musiq_koniq_ckpt-e95806b9.pth"),
        ("image_reward", "ImageReward"),
    ):
        with pytest.raises(UserError, match=f"Metric {name}: {tmp_path} has no {file}.*--weights"):
            open_metrics([name], str(tmp_path))
