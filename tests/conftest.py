"""Fixtures that several test files share: a tiny but complete model, and images."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared"
if SHARED.is_dir():
    os.environ.setdefault("LATENT_CODEC_SHARED", str(SHARED))

Pixels = NDArray[np.uint8]

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}


def make_pixels(height: int, width: int, seed: int = 0) -> Pixels:
    """An image with smooth parts, edges and noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / (7 + k + seed)) + np.cos(y / (11 - k)) for k in range(3)]
    stripes = ((x + 2 * y) % 64 < 20)[..., None] * 60
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(np.stack(waves, -1) * 40 + 128 + stripes + noise, 0, 255).astype(np.uint8)


def write_model(directory: Path, *, seed: int, name: str) -> Path:
    """Makes a model directory with random weights and tables that are fitted to its latents."""
    import torch

    from codec import backbone, checkpoint, quantizer
    from codec.autoencoder import LatentAutoencoder
    from codec.entropy.fit import fit

    torch.manual_seed(seed)
    model = LatentAutoencoder(**TINY, scaling_factor=0.5, shift_factor=0.25).eval()
    with torch.no_grad():
        latents = [backbone.encode_pixels(model, make_pixels(256, 256, k)) for k in range(3)]
    step_size = float(np.std(latents)) / 4
    steps = [quantizer.step_from_size(step_size * ratio) for ratio in (0.25, 1, 4)]
    model.to(torch.float16).save_pretrained(directory, safe_serialization=True)
    fit(latents, steps).save(directory / "entropy.safetensors")
    checkpoint.finalize(
        directory,
        name=name,
        default_quality=50,
        quality_50_step=step_size,
        license_name="CC0-1.0",
        summary="Random weights for tests.",
    )
    return directory


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Pixels]:
    """Makes test images: `pixels(height, width, seed=0)`."""
    return make_pixels


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model directory. Do not change it: copy it first."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", seed=0, name="tiny")


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, with other ids."""
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1, name="other")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision a process; a test must not inherit that of another."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
