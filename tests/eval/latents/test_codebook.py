"""Usage, perplexity and entropy of histograms that are known."""

import numpy as np
import pytest
import torch

from eval.latents.codebook import CodebookMeter
from eval.latents.entropy import entropy_bits, order0_bits


def test_each_codebook_has_its_own_figures() -> None:
    meter = CodebookMeter((8, 4), "toys")
    meter.update((torch.arange(8).repeat(3).view(2, 3, 4), torch.zeros(2, 6, 8, dtype=torch.int64)))
    top, bottom = meter.finish()
    assert (top.usage, top.entropy_bits, top.perplexity) == (1.0, 3.0, 8.0)
    assert (bottom.used, bottom.entropy_bits, bottom.perplexity) == (1, 0.0, 1.0)
    assert (top.count, bottom.count) == (24, 96)
    assert top.set_name == "toys"


def test_parts_merge_to_the_whole() -> None:
    indices = torch.tensor([0, 0, 0, 1, 2, 2, 5])
    whole, first, second = (CodebookMeter((6,), "toys") for _ in range(3))
    whole.update((indices,))
    first.update((indices[:4],))
    second.update((indices[4:],))
    first.merge(second)
    assert first.finish() == whole.finish()
    assert whole.finish()[0].usage == pytest.approx(4 / 6)


def test_entropy_of_skewed_and_empty_histograms() -> None:
    assert entropy_bits(np.array([2, 1, 1, 0])) == pytest.approx(1.5)
    assert entropy_bits(np.zeros(4, dtype=np.int64)) == 0.0


def test_order_0_rate_counts_each_channel_apart() -> None:
    """Two channels that are constant, of different values, need no bits."""
    symbols = np.stack([np.full((4, 4), 3.0), np.full((4, 4), -1.0)])
    assert order0_bits(symbols) == 0.0
    symbols[1, :2] = 7.0
    assert order0_bits(symbols) == pytest.approx(16)
