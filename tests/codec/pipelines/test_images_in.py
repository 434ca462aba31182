"""Pipelines that start from an image scale the encoder's latents by the family's formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from tests.codec.pipelines.families import (
    PROMPT,
    SIDE,
    image_to_image,
    inpainting,
    make_vae,
    quiet,
    run,
    to_images,
)


@pytest.fixture
def picture(pixels: Callable[..., Any]) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels(8 * SIDE, 8 * SIDE))


def unit(picture: PIL.Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None].float() / 127.5 - 1


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", ["gaussian", "vq", "fsq"])
def test_image_to_image(picture: PIL.Image.Image, bottleneck: str) -> None:
    """One of two steps by hand, from scaled latents of the image with noise added."""
    vae = make_vae(bottleneck=bottleneck, codebook_size=16)
    pipeline = quiet(image_to_image(vae))
    draws = generator()
    encoded = vae.encode(unit(picture))
    posterior = getattr(encoded, "latent_dist", None)
    raw_latents = encoded.latents if posterior is None else posterior.sample(draws)
    scaled = vae.config.scaling_factor * raw_latents
    steps = pipeline.scheduler
    steps.set_timesteps(2)
    last = steps.timesteps[-1:]
    noise = torch.randn(scaled.shape, generator=draws)
    latents = steps.add_noise(scaled, noise, last)
    states = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
    predicted = pipeline.unet(latents, last, encoder_hidden_states=states).sample
    expected = steps.step(predicted, last[0], latents).prev_sample
    settings = {"image": picture, "strength": 0.5, "guidance_scale": 1.0}
    torch.testing.assert_close(run(pipeline, "latent", **settings), expected, rtol=0, atol=1e-5)
    images = run(pipeline, "pt", **settings)
    torch.testing.assert_close(
        images, to_images(vae, expected / vae.config.scaling_factor), rtol=0, atol=1e-5
    )


def mask() -> PIL.Image.Image:
    """White, to be painted, in the left half."""
    array = np.zeros((8 * SIDE, 8 * SIDE), np.uint8)
    array[:, : 4 * SIDE] = 255
    return PIL.Image.fromarray(array)


@torch.no_grad()
def test_inpainting_keeps_what_is_not_masked(picture: PIL.Image.Image) -> None:
    vae = make_vae()
    pipeline = quiet(inpainting(vae))
    scaled = vae.config.scaling_factor * vae.encode(unit(picture)).latent_dist.sample(generator())
    latents = run(pipeline, "latent", image=picture, mask_image=mask())
    torch.testing.assert_close(latents[..., SIDE // 2 :], scaled[..., SIDE // 2 :])
    assert (latents - scaled)[..., : SIDE // 2].abs().min() > 1e-4
    images = run(pipeline, "pt", image=picture, mask_image=mask())
    expected = to_images(vae, latents / vae.config.scaling_factor)
    torch.testing.assert_close(images, expected)


@torch.no_grad()
def test_inpainting_networks_see_the_masked_image_scaled(picture: PIL.Image.Image) -> None:
    """Nine channels: latents, mask, and the latents of the image without what is masked."""
    vae = make_vae()
    pipeline = quiet(inpainting(vae, in_channels=9))
    seen: list[Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(pipeline, "pt", image=picture, mask_image=mask(), guidance_scale=1.0)
    masked = unit(picture) * (torch.from_numpy(np.array(mask())) < 128)
    draws = generator()
    torch.randn(1, 4, SIDE, SIDE, generator=draws)  # the pipeline's first noise
    raw_latents = vae.encode(masked).latent_dist
    scaled = vae.config.scaling_factor * raw_latents.sample(draws)
    torch.testing.assert_close(seen[0][:, 5:], scaled)
