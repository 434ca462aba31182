"""How much of a codebook is used, over a named set of images.

Usage and perplexity grow with the number of indices counted until every code that the encoder
knows has come up, so both belong to the set that they were measured on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.latents.entropy import entropy_bits


@dataclass(frozen=True, slots=True)
class CodebookUsage:
    """One codebook over one set.

    Attributes:
        set_name: the images that were encoded.
        size: codes in the codebook.
        used: codes that came up at least once.
        count: indices counted.
        entropy_bits: of their histogram, bits an index.
    """

    set_name: str
    size: int
    used: int
    count: int
    entropy_bits: float

    @property
    def usage(self) -> float:
        """Share of the codes that came up."""
        return self.used / self.size

    @property
    def perplexity(self) -> float:
        """How many equally likely codes would have this entropy, 1 to `size`."""
        return float(2**self.entropy_bits)


class CodebookMeter:
    """Counts the indices of each codebook, coarse to fine.

    Args:
        sizes: codes of each codebook.
        set_name: the images that are encoded, for the report.
    """

    def __init__(self, sizes: Sequence[int], set_name: str) -> None:
        self.set_name = set_name
        self.counts = [np.zeros(size, dtype=np.int64) for size in sizes]

    def update(self, indices: Sequence[Tensor]) -> None:
        """Add the indices of a batch: an integer tensor of any shape for each codebook."""
        for counts, found in zip(self.counts, indices, strict=True):
            flat = found.detach().flatten().cpu()
            assert flat.numel() == 0 or 0 <= flat.min() <= flat.max() < len(counts)
            counts += torch.bincount(flat, minlength=len(counts)).numpy()

    def merge(self, other: "CodebookMeter") -> None:
        """Add what another one has seen."""
        for counts, more in zip(self.counts, other.counts, strict=True):
            counts += more

    def finish(self) -> tuple[CodebookUsage, ...]:
        """The figures of each codebook over everything seen."""
        return tuple(
            CodebookUsage(
                set_name=self.set_name,
                size=len(counts),
                used=int((counts > 0).sum()),
                count=int(counts.sum()),
                entropy_bits=entropy_bits(counts),
            )
            for counts in self.counts
        )
