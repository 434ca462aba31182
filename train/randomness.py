"""Random numbers from the run's seed and a place in the run, so that none have a state to save.

Whatever is drawn depends on neither process, batch size nor history: a resumed run draws what an
uninterrupted one does. `train.data` draws crops from streams 0 and 1 of numpy's generator.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

NOISE, EQUIVARIANCE, PERMUTATION, CODEBOOK_START, CODEBOOK_UPDATE = 9, 10, 11, 20, 30
"""Streams; the last two count on, one for each codebook."""
UNIT_DROPOUT, HELD_OUT = 40, 41


def stream(seed: int, place: int, draw: int) -> int:
    """A seed from the run's seed, a place in the run and the stream that is drawn from.

    All of its bits are mixed: torch's generator on the CPU looks at the lower 32 alone.
    """
    words = np.random.SeedSequence((seed, place, draw)).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def sample_generators(seed: int, indices: Tensor) -> list[torch.Generator]:
    """A generator for each sample, from the run's seed and the sample's number alone.

    They live on the CPU: the same numbers on every device.
    """
    return [torch.Generator().manual_seed(stream(seed, index, NOISE)) for index in indices.tolist()]


def sample_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of a tensor's shape, sample by sample."""
    parts = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(parts).to(like.device, like.dtype)


@contextmanager
def seeded(seed: int, place: int, draw: int) -> Iterator[None]:
    """Torch's global generator starts from `stream` inside, and is put back afterwards."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(stream(seed, place, draw))
        yield
