"""Distances over real features: photographs of one kind are near one another, noise is far."""

import os
from pathlib import Path

import numpy as np
import pytest

from eval.distribution.features import extract
from eval.distribution.image_sets import open_images
from eval.distribution.kernel_distance import kernel_distance
from eval.lpips import load_lpips
from eval.priors.baselines import take_turns

SHARED = Path(os.environ.get("LATENT_CODEC_SHARED") or Path(__file__).parents[3].parent / "shared")
BACKBONE = SHARED / "lpips" / "squeezenet1_1_features.pth"
CLOTHING = SHARED / "data" / "clothing"

pytestmark = pytest.mark.skipif(
    not (BACKBONE.is_file() and CLOTHING.is_dir()),
    reason="no backbone or photographs of clothes: name their folder in LATENT_CODEC_SHARED",
)


def test_halves_of_the_photographs_are_near_and_spoilt_ones_far() -> None:
    photographs = open_images(CLOTHING / "train", 128)
    chosen = photographs.pick(take_turns(photographs.labels, 80, seed=0))
    network = load_lpips(backbone=BACKBONE)
    halves = [extract(chosen.pick(range(start, 80, 2)), network) for start in (0, 1)]
    rng = np.random.default_rng(0)
    spoilt = [
        np.clip(pixels + rng.normal(0, 40, pixels.shape), 0, 255).astype(np.uint8)
        for pixels in chosen.pick(range(1, 80, 2))
    ]
    near = kernel_distance(*halves)
    far = kernel_distance(halves[0], extract(spoilt, network))
    assert near.low < 0 < near.high
    assert far.low > near.high
