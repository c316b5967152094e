"""Keys and shapes of single files in the original layout, block by block as the original networks
are put together, from the config of diffusers' classes. A helper, not a test.
"""

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {1: "cond_stage_model.transformer.", 2: "conditioner.embedders.0.transformer."}
OPENCLIP = "conditioner.embedders.1.model."


class _Shapes(dict):
    """Key -> shape, filled layer by layer."""

    def dense(self, name, out, into, bias=True):
        self[f"{name}.weight"] = (out, into)
        if bias:
            self[f"{name}.bias"] = (out,)

    def conv(self, name, out, into, side=3):
        self.dense(name, out, into)
        self[f"{name}.weight"] += (side, side)

    def norm(self, *names, width):
        for name in names:
            self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)


def unet(c) -> dict:
    """Of UNet2DConditionModel's config."""
    s, widths, blocks = _Shapes(), list(c["block_out_channels"]), c["layers_per_block"]
    time = 4 * widths[0]
    depths = c.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    attends = ["CrossAttn" in kind for kind in c["down_block_types"]]

    def residual(name, into, out):
        s.norm(f"{name}.in_layers.0", width=into)
        s.conv(f"{name}.in_layers.2", out, into)
        s.dense(f"{name}.emb_layers.1", out, time)
        s.norm(f"{name}.out_layers.0", width=out)
        s.conv(f"{name}.out_layers.3", out, out)
        if into != out:
            s.conv(f"{name}.skip_connection", out, into, 1)

    def attention(name, width, depth):
        s.norm(f"{name}.norm", width=width)
        for side in ("proj_in", "proj_out"):
            if c.get("use_linear_projection"):
                s.dense(f"{name}.{side}", width, width)
            else:
                s.conv(f"{name}.{side}", width, width, 1)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for part, seen in (("attn1", width), ("attn2", c["cross_attention_dim"])):
                s.dense(f"{block}.{part}.to_q", width, width, bias=False)
                s.dense(f"{block}.{part}.to_k", width, seen, bias=False)
                s.dense(f"{block}.{part}.to_v", width, seen, bias=False)
                s.dense(f"{block}.{part}.to_out.0", width, width)
            s.dense(f"{block}.ff.net.0.proj", 8 * width, width)
            s.dense(f"{block}.ff.net.2", width, 4 * width)
            s.norm(*(f"{block}.norm{j}" for j in (1, 2, 3)), width=width)

    s.dense("time_embed.0", time, widths[0])
    s.dense("time_embed.2", time, time)
    if c.get("addition_embed_type"):
        s.dense("label_emb.0.0", time, c["projection_class_embeddings_input_dim"])
        s.dense("label_emb.0.2", time, time)
    now, skips, i = widths[0], [widths[0]], 1
    s.conv("input_blocks.0.0", now, c.get("in_channels", 4))
    for stage, width in enumerate(widths):
        for _ in range(blocks):
            residual(f"input_blocks.{i}.0", now, width)
            if attends[stage]:
                attention(f"input_blocks.{i}.1", width, depths[stage])
            now, i = width, i + 1
            skips.append(now)
        if stage < len(widths) - 1:
            s.conv(f"input_blocks.{i}.0.op", now, now)
            skips.append(now)
            i += 1
    residual("middle_block.0", now, now)
    attention("middle_block.1", now, depths[-1])
    residual("middle_block.2", now, now)
    i = 0
    for stage in reversed(range(len(widths))):
        for block in range(blocks + 1):
            residual(f"output_blocks.{i}.0", now + skips.pop(), widths[stage])
            now = widths[stage]
            if attends[stage]:
                attention(f"output_blocks.{i}.1", now, depths[stage])
            if stage and block == blocks:
                s.conv(f"output_blocks.{i}.{1 + attends[stage]}.conv", now, now)
            i += 1
    s.norm("out.0", width=now)
    s.conv("out.2", c.get("out_channels", 4), now)
    return {UNET + key: shape for key, shape in s.items()}


def autoencoder(c) -> dict:
    """Of AutoencoderKL's config."""
    s, widths, blocks = _Shapes(), list(c["block_out_channels"]), c["layers_per_block"]
    latent, top = c["latent_channels"], len(widths) - 1

    def residual(name, into, out):
        s.norm(f"{name}.norm1", width=into)
        s.conv(f"{name}.conv1", out, into)
        s.norm(f"{name}.norm2", width=out)
        s.conv(f"{name}.conv2", out, out)
        if into != out:
            s.conv(f"{name}.nin_shortcut", out, into, 1)

    def middle(name, width):
        residual(f"{name}.block_1", width, width)
        s.norm(f"{name}.attn_1.norm", width=width)
        for part in ("q", "k", "v", "proj_out"):
            s.conv(f"{name}.attn_1.{part}", width, width, 1)
        residual(f"{name}.block_2", width, width)

    now = widths[0]
    s.conv("encoder.conv_in", now, 3)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            residual(f"encoder.down.{stage}.block.{block}", now, width)
            now = width
        if stage < top:
            s.conv(f"encoder.down.{stage}.downsample.conv", now, now)
    middle("encoder.mid", now)
    s.norm("encoder.norm_out", width=now)
    s.conv("encoder.conv_out", 2 * latent, now)
    s.conv("quant_conv", 2 * latent, 2 * latent, 1)
    s.conv("post_quant_conv", latent, latent, 1)
    s.conv("decoder.conv_in", now, latent)
    middle("decoder.mid", now)
    for stage in reversed(range(len(widths))):
        for block in range(blocks + 1):
            residual(f"decoder.up.{stage}.block.{block}", now, widths[stage])
            now = widths[stage]
        if stage:
            s.conv(f"decoder.up.{stage}.upsample.conv", now, now)
    s.norm("decoder.norm_out", width=now)
    s.conv("decoder.conv_out", 3, now)
    return {VAE + key: shape for key, shape in s.items()}


def openclip(c) -> dict:
    """Of CLIPTextModelWithProjection's config."""
    s, width = _Shapes(), c["hidden_size"]
    s["positional_embedding"] = (c["max_position_embeddings"], width)
    s["token_embedding.weight"] = (c["vocab_size"], width)
    s["text_projection"] = (width, c["projection_dim"])
    s["logit_scale"] = ()
    s.norm("ln_final", width=width)
    for i in range(c["num_hidden_layers"]):
        block = f"transformer.resblocks.{i}"
        s.norm(f"{block}.ln_1", f"{block}.ln_2", width=width)
        s[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        s[f"{block}.attn.in_proj_bias"] = (3 * width,)
        s.dense(f"{block}.attn.out_proj", width, width)
        s.dense(f"{block}.mlp.c_fc", c["intermediate_size"], width)
        s.dense(f"{block}.mlp.c_proj", width, c["intermediate_size"])
    return {OPENCLIP + key: shape for key, shape in s.items()}


def clip(c, parts: int) -> dict:
    """Of CLIPTextModel's config, in the file of a family with that many text encoders."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        state = CLIPTextModel(CLIPTextConfig(**c)).state_dict()
    found = {
        f"text_model.{k.removeprefix('text_model.')}": tuple(v.shape) for k, v in state.items()
    }
    found["text_model.embeddings.position_ids"] = (1, c["max_position_embeddings"])
    return {CLIP[parts] + key: shape for key, shape in found.items()}


def whole(settings) -> dict:
    """Of all parts' configs, and what stands beside them in such files."""
    second = settings.get("text_encoder_2")
    found = unet(settings["unet"]) | autoencoder(settings["vae"])
    found |= clip(settings["text_encoder"], 2 if second else 1)
    if second:
        return found | openclip(second) | {"denoiser.sigmas": (1000,)}
    names = ["betas", "lvlb_weights", "logvar"]
    names += [f"posterior_{x}" for x in ("variance", "log_variance_clipped", "mean_coef1")]
    names += [f"{x}alphas_cumprod" for x in ("", "sqrt_", "sqrt_one_minus_", "log_one_minus_")]
    names += ["sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "alphas_cumprod_prev"]
    return found | dict.fromkeys(names, (1000,))
