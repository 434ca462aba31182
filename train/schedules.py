"""Schedules: plain functions of the number of images seen."""

import math


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
