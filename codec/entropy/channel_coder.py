"""ChannelCoder: a SymbolCoder for latents that have a quantiser step for each channel.

The SymbolCoder was fitted on latents divided by their channels' deviations and knows one step, in
units of those. It follows from the steps of the channels, which a file's header states, by integers
alone; so a file may have any steps, and codes best with those that follow the deviations.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from codec.entropy.coder import SymbolCoder
from codec.entropy.storage import (
    CODER_DTYPES,
    coder_tensors,
    parse_coder,
    read_tensors,
    write_tensors,
)
from codec.entropy.symbols import MAX_STEP
from codec.entropy.tables import TablesError

CHANNELS_VERSION = "channels-1"
_DEVIATIONS = "deviations"
_STEP_BITS = 16


@dataclass(frozen=True, slots=True)
class ChannelCoder:
    """Codes integer latents of C channels with a step each.

    Attributes:
        coder: Codes them as if they had one step, in units of 2**-16 deviations.
        deviations: The standard deviation of each channel's raw latents, in units of 2**-16.
    """

    coder: SymbolCoder
    deviations: tuple[int, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a coder from its safetensors file.

        Raises:
            TablesError: The file is missing, malformed or of another version.
        """
        path = Path(path)
        dtypes = {**CODER_DTYPES, _DEVIATIONS: np.dtype(np.int64)}
        tensors = read_tensors(path, CHANNELS_VERSION, dtypes)
        predictors, tables = parse_coder(path, tensors)
        deviations = tensors[_DEVIATIONS]
        if deviations.shape != (len(predictors),) or not (
            deviations.min() >= 1 and deviations.max() <= MAX_STEP
        ):
            raise TablesError(
                f"{path}: deviations of shape {deviations.shape} were found where "
                f"{len(predictors)} channels ask for as many, from 1 to {MAX_STEP}; export the "
                "model again"
            )
        return cls(SymbolCoder(predictors, tables), tuple(deviations.tolist()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the coder as a safetensors file of integers; equal coders give equal bytes."""
        tensors = coder_tensors(self.coder.predictors, self.coder.tables)
        tensors[_DEVIATIONS] = np.array(self.deviations, np.int64)
        write_tensors(path, CHANNELS_VERSION, tensors)

    def encode(self, symbols: NDArray[np.int32], steps: Sequence[int]) -> bytes:
        """Returns the payload of symbols; see `SymbolCoder.encode`.

        Args:
            symbols: int32 (C, h, w).
            steps: C quantiser steps in units of 2**-16.
        """
        return self.coder.encode(symbols, self.common_step(steps))

    def decode(
        self, payload: bytes, shape: tuple[int, int, int], steps: Sequence[int]
    ) -> NDArray[np.int32]:
        """Returns the symbols that `encode` made `payload` from; see `SymbolCoder.decode`."""
        return self.coder.decode(payload, shape, self.common_step(steps))

    def estimate_bits(self, symbols: NDArray[np.int32], steps: Sequence[int]) -> float:
        """Returns the ideal code length of symbols in bits."""
        return self.coder.estimate_bits(symbols, self.common_step(steps))

    def common_step(self, steps: Sequence[int]) -> int:
        """Returns the step in units of 2**-16 deviations that the largest of `steps` stands for."""
        largest = max(range(len(steps)), key=lambda channel: steps[channel])  # the first such
        deviation = self.deviations[largest]
        step = ((steps[largest] << _STEP_BITS) + deviation // 2) // deviation
        return min(max(step, 1), MAX_STEP)
