"""Schedules: plain functions of the number of images seen, and a controller that follows a rate."""

import math

from train.sections import LossConfig

MIN_WEIGHT, MAX_WEIGHT = 1e-9, 1e3
"""Bounds of a controlled weight: it can recover from either within a run."""


def warmup_cosine(images: int, *, warmup: int, total: int, final: float) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine from 1 to `final` at `total`."""
    if images < warmup:
        return (images + 1) / (warmup + 1)
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def ramp(images: int, *, start: int, length: int) -> float:
    """0 until `start`, then linearly to 1 over `length` images."""
    if images < start:
        return 0.0
    return min(1.0, (images - start + 1) / max(1, length))


def kl_factor(images: int, config: LossConfig) -> float:
    """Factor on the KL weight, 0 to 1.

    constant: 1. linear: from 0 to 1 over the first `kl_warmup` images. cyclical: the same at the
    start of each cycle of `kl_cycle` images, then 1 (arXiv:1903.10145, equation 6).
    """
    if config.kl_schedule == "constant":
        return 1.0
    place = images % config.kl_cycle if config.kl_schedule == "cyclical" else images
    return min(1.0, place / config.kl_warmup)


class RateController:
    """Moves the KL weight so that a measured rate settles at `kl_target`.

    Multiplicative: the weight's logarithm moves by `kl_controller_gain` times the relative error
    of the rate, which counts as at most 1 either way.

    Attributes:
        weight: the KL weight now; starts at `kl_weight`, stays within 1e-9 to 1e3.
    """

    def __init__(self, config: LossConfig) -> None:
        assert config.kl_target is not None
        self.target = config.kl_target
        self.gain = config.kl_controller_gain
        self.weight = config.kl_weight

    def update(self, rate: float) -> None:
        """Follow one measurement.

        Args:
            rate: per latent element, in `kl_target_unit`, over the whole step.
        """
        error = max(-1.0, min(1.0, (rate - self.target) / self.target))
        moved = self.weight * math.exp(self.gain * error)
        self.weight = max(MIN_WEIGHT, min(MAX_WEIGHT, moved))

    def state_dict(self) -> dict[str, float]:
        """What changes while training."""
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.weight = state["weight"]
