"""Distillation: a student learns to give and to read another autoencoder's latents.

What TAESD does for Stable Diffusion's autoencoder: the student's encoder matches the teacher's
latents, its decoder inverts them to the images that they came from.
"""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from codec.backbone import decode_raw, encode_raw, load_autoencoder
from codec.catalog import model_directory
from train.held_out import HeldOut, Part


class Teacher:
    """A frozen autoencoder whose latents a student learns to give and to read.

    Args:
        source: embedded name or directory of any diffusers autoencoder.
        device: where it runs, in float32.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self.source = source
        self.model: Any = load_autoencoder(model_directory(source))
        self.model.requires_grad_(False).eval()
        self.model.to(device, memory_format=torch.channels_last)
        self.variance: float | None = None

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) float32 of images (B, 3, H, W) in [-1, 1]."""
        return encode_raw(self.model, x).float()

    def measure(self, x: Tensor) -> None:
        """Take the variance of its latents over a batch as the unit of the student's error."""
        latents = self.latents(x)
        self.variance = float(latents.var(dim=(0, 2, 3)).mean())


@torch.no_grad()
def distillation_figures(
    student: Any, teacher: Teacher, held_out: HeldOut, accelerator: Accelerator
) -> dict[str, float]:
    """How well a student speaks its teacher's latent space; call it on every process.

    `distill/latent_error`: mean squared error of the student's latents over the variance of the
    teacher's. `distill/psnr_teacher` and `distill/psnr_student`: in dB, means over images, of what
    either decoder makes of the teacher's latents.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    for part in held_out.shares(student, accelerator):
        sums += _compare(student, teacher, part)
    whole = torch.stack(gather_object([sums])).sum(dim=0)
    error, squares, first, second, count = whole.tolist()
    return {
        "distill/latent_error": error / squares,
        "distill/psnr_teacher": first / count,
        "distill/psnr_student": second / count,
    }


def _compare(student: Any, teacher: Teacher, part: Part) -> Tensor:
    """Sums over images: errors of latents, their variance, both PSNRs, number of images."""
    expected = teacher.latents(part.x)
    found = encode_raw(student, part.x).float()
    centred = expected - expected.mean(dim=(0, 2, 3), keepdim=True)
    figures = [(found - expected).square().sum(), centred.square().sum()]
    for model in (teacher.model, student):
        output = decode_raw(model, expected).float()
        levels = torch.round((output.clamp(-1, 1) + 1) * 127.5)
        error = (levels - part.levels).square().mean((1, 2, 3))
        figures.append((10 * torch.log10(255**2 / error)).sum())
    return torch.tensor([*map(float, figures), len(part.x)], dtype=torch.float64)
