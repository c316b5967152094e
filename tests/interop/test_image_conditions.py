"""Pipelines with an image beside the latents: inpainting and InstructPix2Pix, there and back."""

import jax
import numpy as np
import pipelines
import pytest
import roundtrips
import torch
from PIL import Image

from emu_jax.tasks import generation
from emu_jax.tasks.codecs import AutoencoderCodec

PROMPTS, STEPS = ["a red fox", "cat"], 2


@pytest.mark.usefixtures("unchecked_arrays")  # latents in place of decoded images
@pytest.mark.parametrize("kind", ["inpainting", "editing"])
def test_a_run_from_the_same_noise_is_diffusers(kind, tmp_path, monkeypatch):
    """Guided by the text, and in editing by the image too; and the files are the same again."""
    source = pipelines.write_beside(kind, tmp_path)
    source, ours, back = roundtrips.there_and_back(source, tmp_path / "trip")
    roundtrips.assert_same_files(source, back, weights=3)

    monkeypatch.setattr(AutoencoderCodec, "decode", lambda self, params, z: z)
    monkeypatch.setattr(generation, "to_pixels", lambda x: x)
    scales = dict(guidance_scale=3.0)
    if kind == "editing":
        scales["image_guidance_scale"] = 1.7
    generator = roundtrips.quick_generator(ours, steps=STEPS, **scales)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[3:11, 5:] = 255
    own = dict(inpainting=dict(image=image, mask=mask), editing=dict(before=image))[kind]
    images = {name: [array] * 2 for name, array in own.items()}
    assert generator.further == tuple(own)
    drawn = np.stack(list(generator.draw_each(PROMPTS, [3, 4], images=images)))
    other = {**images, generator.further[0]: [255 - image] * 2}
    changed = np.stack(list(generator.draw_each(PROMPTS, [3, 4], images=other)))

    pipeline = roundtrips.opened(back)
    keys = jax.vmap(jax.random.key)(np.array([3, 4], np.uint32))
    start = np.array(generator._task.process.prior(keys, (2, 8, 8, 4)))
    given = dict(image=[Image.fromarray(image)] * 2)
    if kind == "inpainting":
        # Its masked image is a sample of the latents, ours their mean.
        pixels = np.where(mask[..., None] > 0, 0, image / 127.5 - 1).transpose(2, 0, 1)[None]
        with torch.no_grad():
            latents = pipeline.vae.encode(torch.tensor(pixels, dtype=torch.float32))
        known = latents.latent_dist.mode() * pipeline.vae.config.scaling_factor
        given |= dict(mask_image=[Image.fromarray(mask)] * 2, height=16, width=16)
        given |= dict(masked_image_latents=known.repeat(2, 1, 1, 1))
    wanted = pipeline(
        PROMPTS,
        latents=torch.tensor(start).permute(0, 3, 1, 2),
        num_inference_steps=STEPS,
        output_type="latent",
        **given,
        **scales,
    ).images.permute(0, 2, 3, 1)
    error = roundtrips.far(drawn, wanted.numpy())
    print(f"{kind}: a run of {STEPS} steps differs by {error:.1e}")
    assert np.std(wanted.numpy()) > 0.1 and error < 1e-4
    assert roundtrips.far(changed, drawn) > 0.01
