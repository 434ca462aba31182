"""Diffusion priors with random weights, as an export would write them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codec.checkpoint import read_info
from codec.prior.denoiser import DenoiserShape, build_denoiser
from codec.prior.directory import write_prior
from codec.prior.pipeline import LatentPriorPipeline
from codec.prior.process import Objective, Process, training_scheduler

CLASSES = ("dress", "hat", "t-shirt")
SIDE = 8  # cells of latents

SHAPES = {
    "unet": DenoiserShape("unet", 4, SIDE, (16, 32), 1, 16, (1,), num_classes=3),
    "unet-patches": DenoiserShape("unet", 4, SIDE, (16, 32), 1, 16, (1,), 2, num_classes=3),
    "unet-free": DenoiserShape("unet", 4, SIDE, (16, 32), 1, 16, (1,)),
    "unet-text": DenoiserShape("unet", 4, SIDE, (16, 32), 1, 16, (1,), embedding_width=6),
    "dit": DenoiserShape("dit", 4, SIDE, (32,), 2, 16, patch_size=2, num_classes=3),
    "dit-free": DenoiserShape("dit", 4, SIDE, (32,), 2, 16, patch_size=2),
    "dit-text": DenoiserShape("dit", 4, SIDE, (32,), 2, 16, patch_size=2, embedding_width=6),
}


def tiny_denoiser(name: str, seed: int = 0) -> Any:
    """A denoiser whose output depends on everything: no layer is zero."""
    torch.manual_seed(seed)
    model = build_denoiser(SHAPES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model.eval()


def write_tiny_prior(
    directory: Path,
    codec: Path,
    *,
    denoiser: str = "unet",
    objective: Objective = "flow",
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """A complete prior over the latents of a codec, which is copied into it."""
    scheduler = training_scheduler(objective, "scaled_linear", False)
    pipeline = LatentPriorPipeline(tiny_denoiser(denoiser), scheduler, class_names=classes)
    pipeline.save_pretrained(directory, safe_serialization=True)
    shutil.copytree(codec, directory / "codec")
    write_prior(
        directory,
        name=f"tiny-{denoiser}",
        kind="diffusion",
        codec="codec",
        latent_id=read_info(codec).latent_id,
        class_names=classes,
        size=(8 * SIDE, 8 * SIDE),
        license_name="CC0-1.0",
        summary="Random weights for tests.",
    )
    return directory


class Oracle(nn.Module):
    """A denoiser that knows the only image there is, so that every sampler must end there."""

    def __init__(self, latents: Tensor, process: Process) -> None:
        super().__init__()
        self.latents, self.process = latents, process
        self.nothing = nn.Parameter(torch.zeros(()))
        self.config = {"num_class_embeds": None}

    def forward(self, noisy: Tensor, times: Tensor, class_labels: Tensor | None = None) -> Any:
        a, b = self.process.coefficients(times)
        noise = (noisy - a * self.latents) / b.clamp(min=1e-4)
        return Output(self.process.target(self.latents, noise, times))


class Output:
    """What a model of diffusers returns."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample
