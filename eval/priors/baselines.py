"""What a prior is compared with: noise of the right mean and variance, and a choice of real images.

Legend: N images, C latent channels, h w latent grid.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def gaussian_latents(latents: Tensor, number: int, *, by_position: bool, seed: int = 0) -> Tensor:
    """Draw latents whose elements are independent, with the mean and deviation of real ones.

    A prior that has learned no more than these two moments makes such pictures.

    Args:
        latents: real, scaled latents (N, C, h, w).
        number: of latents to draw.
        by_position: each channel has a mean and deviation at each position; else one in all.
        seed: of the draw.

    Returns:
        float32 (number, C, h, w).
    """
    over = (0,) if by_position else (0, 2, 3)
    mean = latents.double().mean(dim=over, keepdim=True)
    std = latents.double().std(dim=over, keepdim=True)
    noise = torch.randn(number, *latents.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (mean + std * noise).float()


def take_turns(labels: Sequence[str | None], number: int, *, seed: int | None = None) -> list[int]:
    """Choose images so that classes come equally often, as far as they have images.

    Args:
        labels: of all images.
        number: of images wanted, at most as many as there are.
        seed: which images of a class are taken; None takes the first ones.

    Returns:
        Their indices, a class after the other by name, again and again.
    """
    by_class: dict[str, list[int]] = defaultdict(list)
    order = (
        range(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))
    )
    for index in map(int, order):
        by_class[labels[index] or ""].append(index)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(number, len(labels)):
        chosen += [by_class[name][turn] for name in sorted(by_class) if turn < len(by_class[name])]
        turn += 1
    return chosen[:number]
