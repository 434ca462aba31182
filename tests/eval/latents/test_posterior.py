"""KL divergence by channel against torch's own, its histogram, and active units."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from eval.latents.posterior import KL_EDGES, PosteriorMeter, active_units
from eval.latents.statistics import StreamingStatistics


def posteriors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 6, 3, 4, 5, generator=generator)
    mean[:, 1], logvar[:, 1] = 0.0, 0.0  # a channel that says nothing
    return mean, logvar


def test_channels_have_their_own_divergence() -> None:
    mean, logvar = posteriors()
    meter = PosteriorMeter(3)
    meter.update(mean, logvar)
    found = meter.finish()
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)) / math.log(2)
    assert found.channel_bits == pytest.approx(expected.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert found.channel_bits[1] == 0.0
    assert found.image_bits == pytest.approx(float(expected.sum()) / 6, rel=1e-5)
    assert found.mean_bits == pytest.approx(float(expected.mean()), rel=1e-5)
    counts = [np.histogram(channel, KL_EDGES)[0].tolist() for channel in expected.movedim(1, 0)]
    assert [list(row) for row in found.histogram] == counts
    assert found.histogram[1][0] == 6 * 4 * 5


def test_parts_merge_to_the_whole() -> None:
    mean, logvar = posteriors()
    whole, first, second = (PosteriorMeter(3) for _ in range(3))
    whole.update(mean, logvar)
    first.update(mean[:2], logvar[:2])
    second.update(mean[2:], logvar[2:])
    first.merge(second)
    assert first.finish().histogram == whole.finish().histogram
    assert first.finish().channel_bits == pytest.approx(whole.finish().channel_bits)
    assert first.finish().num_images == 6


def test_units_are_active_where_the_mean_varies_over_data() -> None:
    """Not where it is large: a constant says nothing about the image."""
    streaming = StreamingStatistics(3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        streaming.update(np.array([[[rng.normal()]], [[5.0]], [[rng.normal(0, 0.05)]]]))
    assert active_units(streaming.finish()) == (True, False, False)
