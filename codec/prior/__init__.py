"""Priors over latents: diffusion models and transformers that generate what a codec decodes.

from codec.prior import open_prior

prior = open_prior()  # embedded, no network
images = list(prior.sample([prior.info.class_number("dress")] * 4, seeds=range(4)))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.prior.directory import PriorError, PriorInfo
    from codec.prior.opening import open_prior
    from codec.prior.pipeline import LatentPriorPipeline

__all__ = ["LatentPriorPipeline", "PriorError", "PriorInfo", "open_prior"]

_HOMES = {
    "LatentPriorPipeline": "codec.prior.pipeline",
    "PriorError": "codec.prior.directory",
    "PriorInfo": "codec.prior.directory",
    "open_prior": "codec.prior.opening",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
