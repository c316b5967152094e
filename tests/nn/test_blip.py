"""ImageReward's network against transformers' BLIP with random weights."""

import re

import jax
import numpy as np
import torch
from state_dicts import from_torch
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from emu_jax.nn.blip import ImageReward
from emu_jax.nn.functional import Network

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


def test_rewards():
    torch.manual_seed(0)
    image = BlipVisionConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
    )
    text = BlipTextConfig(
        vocab_size=30,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=9,
        encoder_hidden_size=16,
        initializer_range=0.3,
        layer_norm_eps=1e-12,
    )
    vision, bert = BlipVisionModel(image).eval(), BlipTextModel(text, False).eval()
    head = torch.nn.Sequential(
        *(torch.nn.Linear(24, 1024), torch.nn.Dropout(), torch.nn.Linear(1024, 128)),
        *(torch.nn.Dropout(), torch.nn.Linear(128, 64), torch.nn.Dropout()),
        *(torch.nn.Linear(64, 16), torch.nn.Linear(16, 1)),
    ).eval()
    state = {f"mlp.layers.{k}": v for k, v in head.state_dict().items()}
    state |= {f"text_encoder.{k}": v for k, v in bert.state_dict().items() if "_ids" not in k}
    for key, value in vision.state_dict().items():
        for pattern, name in _VISION:
            key = re.sub(pattern, name, key)
        state[f"visual_encoder.{key}"] = value
    network = Network(
        lambda rngs: ImageReward(
            image_size=12,
            patch_size=4,
            vision_width=16,
            vision_layers=2,
            vision_heads=2,
            vocabulary=30,
            width=24,
            layers=2,
            heads=3,
            feed_forward=40,
            positions=9,
            rngs=rngs,
        )
    )
    params = from_torch(state, network.shapes())
    draws = np.random.default_rng(0)
    x = draws.normal(size=(3, 12, 12, 3)).astype(np.float32)
    ids = draws.integers(0, 30, (3, 7))
    mask = np.arange(7) < np.array([[7], [4], [2]])
    with torch.no_grad():
        patches = vision(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state
        states = bert(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2]),
            is_decoder=False,
        ).last_hidden_state
        want = (head(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    found = jax.jit(network)(params, x, ids, mask)
    assert want.std() > 1e-3
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-5)
