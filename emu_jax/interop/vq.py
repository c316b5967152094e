"""diffusers' VQModel, aMUSEd's autoencoder <-> our autoencoding model with a codebook.

Such a model decodes code indices (``lookup_from_codebook``). Its images are in [0, 1]; this is
defined by its pipeline, not by a setting.
"""

from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.interop import autoencoder
from emu_jax.interop.configs import complete

CLASS = "VQModel"
DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"],
    up_block_types=["UpDecoderBlock2D"],
    block_out_channels=[64],
    layers_per_block=1,
    act_fn="silu",
    latent_channels=3,
    sample_size=32,
    num_vq_embeddings=256,
    norm_num_groups=32,
    vq_embed_dim=None,
    scaling_factor=0.18215,
    norm_type="group",
    mid_block_add_attention=True,
    lookup_from_codebook=False,
    force_upcast=False,
)
# Settings that are read below, or (image size, latent scale, precision) have no effect on tokens.
_READ = {
    *("down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("latent_channels", "num_vq_embeddings", "norm_num_groups", "vq_embed_dim"),
    *("mid_block_add_attention", "lookup_from_codebook"),
    *("sample_size", "scaling_factor", "force_upcast"),
}
# The path of the codebook; all other parameters belong to the autoencoder.
BOOK = "quantize/embedding/embedding"


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections ``latent_channels``, ``autoencoder`` and ``quantizer`` for a config.json.

    Raises:
      UserError: names a setting whose structure our network does not have.
    """
    c = complete(config, DEFAULTS, _READ, CLASS)
    autoencoder.require_stages(c, CLASS)
    if c["vq_embed_dim"] not in (None, c["latent_channels"]):
        raise UserError(
            f"This {CLASS} has codes of vq_embed_dim = {c['vq_embed_dim']} for "
            f"{c['latent_channels']} latent channels; only equal widths are supported."
        )
    if not c["lookup_from_codebook"]:
        raise UserError(
            f"This {CLASS} has lookup_from_codebook = False: its generator works on latents. Only "
            "models of tokens are supported."
        )
    return dict(
        latent_channels=c["latent_channels"],
        autoencoder=dict(
            widths=c["block_out_channels"],
            blocks=c["layers_per_block"],
            groups=c["norm_num_groups"],
            mid_attention=c["mid_block_add_attention"],
            quant_conv=True,
            zero_to_one=True,
        ),
        quantizer=dict(codes=c["num_vq_embeddings"]),
    )


def to_config(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The complete config.json for an autoencoding model's config.

    Raises:
      UserError: a network that the public class does not have.
    """
    a = autoencoder.require_symmetric(config["autoencoder"], CLASS)
    for key, meaning in (
        ("quant_conv", "1 x 1 convolutions before and after its codes"),
        ("zero_to_one", "images in [0, 1]"),
    ):
        if not a.get(key):
            raise UserError(
                f"{CLASS} has {meaning}; this autoencoder does not (autoencoder.{key} is False)."
            )
    return DEFAULTS | dict(
        _class_name=CLASS,
        **autoencoder.stages(a),
        latent_channels=config["latent_channels"],
        num_vq_embeddings=config["quantizer"]["codes"],
        sample_size=side,
        lookup_from_codebook=True,
        force_upcast=True,
    )
