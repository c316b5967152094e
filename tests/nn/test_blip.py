"""ImageReward, from its file to a column, against transformers' BLIP with random weights."""

import re

import encoders
import numpy as np
import torch
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from emu_jax.assembly.published_rewards import PUBLISHED, Opened
from emu_jax.assembly.rewards import trained_reward
from emu_jax.cli.main import main
from emu_jax.evaluation import quality_metrics
from emu_jax.evaluation.measuring import Batch
from emu_jax.evaluation.preprocessing import CLIP_MEAN, CLIP_STD, cropped, normalized

_VISION = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding", "pos_embed"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"encoder\.layers", "blocks"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"self_attn\.qkv", "attn.qkv"),
    (r"self_attn\.projection", "attn.proj"),
    (r"post_layernorm", "norm"),
)


def test_rewards(tmp_path):
    torch.manual_seed(0)
    image = BlipVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
    )
    text = BlipTextConfig(
        vocab_size=30,
        hidden_size=64,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=9,
        encoder_hidden_size=64,
        initializer_range=0.3,
        layer_norm_eps=1e-12,
    )
    vision, bert = BlipVisionModel(image).eval(), BlipTextModel(text, False).eval()
    head = torch.nn.Sequential(
        *(torch.nn.Linear(64, 1024), torch.nn.Dropout(), torch.nn.Linear(1024, 128)),
        *(torch.nn.Dropout(), torch.nn.Linear(128, 64), torch.nn.Dropout()),
        *(torch.nn.Linear(64, 16), torch.nn.Linear(16, 1)),
    ).eval()
    state = {f"mlp.layers.{k}": v for k, v in head.state_dict().items()}
    state |= {f"text_encoder.{k}": v for k, v in bert.state_dict().items() if "_ids" not in k}
    for key, value in vision.state_dict().items():
        for pattern, name in _VISION:
            key = re.sub(pattern, name, key)
        state[f"visual_encoder.{key}"] = value
    folder = tmp_path / quality_metrics.IMAGE_REWARD
    folder.mkdir()
    file = {k if k.startswith("mlp") else f"blip.{k}": v for k, v in state.items()}
    file["blip.vision_proj.weight"] = torch.ones(2, 2)  # of BLIP's other losses
    torch.save(file, folder / quality_metrics.IMAGE_REWARD_FILE)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "cat", "."]
    words += [f"[unused{i}]" for i in range(30 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words))
    prompts = ["a red fox.", "cat", "a cat . a cat . a cat ."]
    tokens = BertTokenizer.from_pretrained(str(folder))(
        prompts, padding="max_length", truncation=True, max_length=9, return_tensors="pt"
    )
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (14, n, 3), np.uint8) for n in (20, 13, 14)]
    x = normalized(cropped(images, 12), CLIP_MEAN, CLIP_STD)
    with torch.no_grad():
        patches = vision(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state
        states = bert(
            tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2]),
            is_decoder=False,
        ).last_hidden_state
        want = (head(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    found = quality_metrics.ImageReward(str(tmp_path))(Batch(images, prompts))
    assert want.std() > 1e-3
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)
    # As a reward: in a step, with a gradient.
    opened = PUBLISHED["image_reward"](str(folder))
    found = encoders.scores(opened, cropped(images, 12), prompts)
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)
    assert opened.alpha == 2.0
    imported = tmp_path / "imported"
    assert main(["import", str(folder), f"--out={imported}"]) == 0
    task, weights, _ = trained_reward(str(imported))
    (encoder,) = task.encoders.values()
    own = Opened(task.reward, encoder, weights, task.outputs, opened.alpha)
    np.testing.assert_array_equal(encoders.scores(own, cropped(images, 12), prompts), found)
