"""Tiny random token priors, for several test files."""

from pathlib import Path
from typing import Any

import torch

from codec import Codec
from codec.prior.directory import write_prior
from codec.prior.token_model import new_model, save_model
from codec.prior.tokens import TokenPrior, layout_of
from tests.codec.foreign_models import save_model as save_codec

CLASSES = ("hat", "shoe", "skirt")
SIZE = (32, 32)


def shake(model: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Give every parameter noise, so that classes and places matter; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def write_token_prior(
    folder: Path,
    codec: str = "vq",
    classes: tuple[str, ...] = CLASSES,
    *,
    has_null_class: bool = True,
) -> Path:
    """Make a prior with its codec inside, as an export does; returns its directory."""
    directory = folder / "prior"
    place = save_codec(codec, directory)
    place.rename(directory / "codec")
    opened = Codec.from_pretrained(directory / "codec")
    torch.manual_seed(0)
    layout = layout_of(opened, SIZE, len(classes))
    model = new_model(layout, width=16, layers=2, heads=2, has_null_class=has_null_class)
    save_model(shake(model).half(), directory)
    assert opened.info is not None
    write_prior(
        directory,
        name="tiny",
        kind="tokens",
        codec="codec",
        latent_id=opened.info.latent_id,
        class_names=classes,
        size=SIZE,
        license_name="CC0-1.0",
        summary="Random weights for tests.",
    )
    return directory


def open_token_prior(directory: Path) -> TokenPrior:
    """In float32, where the batch size does not matter."""
    return TokenPrior.from_pretrained(directory, device="cpu", dtype="float32")
