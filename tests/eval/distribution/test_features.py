"""Features against torchvision's own network and preparation, and in batches of any size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

from eval.distribution.features import NUM_FEATURES, extract
from tests.eval.backbones import random_backbone

Pixels = NDArray[np.uint8]


def by_torchvision(pictures: list[Pixels]) -> NDArray[np.float64]:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None).features.eval()
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            x = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
            rows.append(network(x).mean(dim=(2, 3))[0].double().numpy())
    return np.stack(rows)


def test_they_are_the_means_of_torchvisions_last_layer(pixels: Callable[..., Pixels]) -> None:
    pictures = [pixels(48, 64, seed) for seed in range(3)]
    found = extract(pictures, random_backbone())
    assert found.shape == (3, NUM_FEATURES)
    assert np.allclose(found, by_torchvision(pictures), rtol=1e-3, atol=1e-4)
    assert found.std() > 0.01


def test_batches_change_nothing_but_rounding(pixels: Callable[..., Pixels]) -> None:
    pictures = [pixels(40, 40, seed) for seed in range(5)] + [pixels(48, 40, 5)]
    network, steps = random_backbone(), []
    one = extract(pictures, network, batch_size=1)
    several = extract(pictures, network, batch_size=4, advance=lambda: steps.append(1))
    assert np.allclose(one, several, rtol=1e-4, atol=1e-5)
    assert np.array_equal(several, extract(pictures, network, batch_size=4))
    assert len(steps) == len(pictures)


def test_no_images_and_too_small_ones(pixels: Callable[..., Pixels]) -> None:
    network = random_backbone()
    assert extract([], network).shape == (0, NUM_FEATURES)
    with pytest.raises(ValueError, match="found an image of 40x16 pixels"):
        extract([pixels(16, 40)], network)
