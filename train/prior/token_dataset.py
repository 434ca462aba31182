"""Sequences of tokens for training, of which each is one sample in an epoch.

Which sequence sample i is, and whether its class is left out, follow from (seed, i) alone, as in
`train.data`: whatever the process, the batch size or the moment.

Legend: B batch, T tokens of an image.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.prior.token_codes import TokenSet
from train.samples.loader import ShareSampler

ORDER, LABEL = 0, 1
"""Streams of random numbers: sequences of an epoch, classes that are left out."""


class TokenBatch(NamedTuple):
    """Sequences of one process and step.

    Attributes:
        tokens: int64 (B, T).
        class_tokens: int64 (B,), that of the null class for what has none.
    """

    tokens: Tensor
    class_tokens: Tensor

    @property
    def num_symbols(self) -> int:
        """B T."""
        return self.tokens.numel()


class TokenDataset:
    """Samples of a set of sequences, without end.

    Args:
        data: the sequences.
        seed: of the run.
        label_dropout: share of samples whose class is left out.

    Attributes:
        unreadable: why images cannot be read, by their keys.
    """

    def __init__(self, data: TokenSet, seed: int, label_dropout: float) -> None:
        self.data = data
        self.seed = seed
        self.label_dropout = label_dropout
        self.unreadable = data.unreadable
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batches(
        self, start: int, batch_size: int, rank: int, num_processes: int
    ) -> Iterator[TokenBatch]:
        """One process's batches from any sample on, without end."""
        return map(self.batch, ShareSampler(start, batch_size, rank, num_processes))

    def batch(self, indices: Iterable[int]) -> TokenBatch:
        """Several samples in tensors."""
        numbers = list(indices)
        rows = [self.sequence_number(index) for index in numbers]
        layout = self.data.layout
        class_tokens = [
            layout.class_token(-1 if self._drops(index) else int(self.data.labels[row]))
            for index, row in zip(numbers, rows, strict=True)
        ]
        tokens = torch.from_numpy(self.data.tokens[rows].astype(np.int64))
        return TokenBatch(tokens, torch.tensor(class_tokens))

    def sequence_number(self, index: int) -> int:
        """The sequence that a sample is."""
        epoch, position = divmod(index, len(self.data.tokens))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch, ORDER))
            self._epoch, self._order = epoch, rng.permutation(len(self.data.tokens))
        return int(self._order[position])

    def fingerprint(self) -> dict[str, Any]:
        """Which images, and whose codes, these are."""
        return self.data.fingerprint

    def _drops(self, index: int) -> bool:
        rng = np.random.default_rng((self.seed, index, LABEL))
        return bool(rng.random() < self.label_dropout)
