"""Lossless coding of integer latents: integer contexts and tables, a range coder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.entropy.coder import SymbolCoder
from codec.entropy.payload import PayloadError
from codec.entropy.symbols import SymbolsError
from codec.entropy.tables import TablesError

__all__ = [
    "LatentCoder",
    "PayloadError",
    "SymbolCoder",
    "SymbolsError",
    "TablesError",
    "load_coder",
]


class LatentCoder(Protocol):
    """What codes continuous latents once they are rounded to integers; see `SymbolCoder`."""

    def encode(self, symbols: NDArray[np.int32], step: int) -> bytes:
        """Return the payload of int32 (C, h, w) symbols."""
        ...

    def encode_batch(self, images: Sequence[NDArray[np.int32]], step: int) -> list[bytes]:
        """Return the payloads of several images of one shape, each as `encode` gives it."""
        ...

    def decode(self, payload: bytes, shape: tuple[int, int, int], step: int) -> NDArray[np.int32]:
        """Return the int32 (C, h, w) symbols of a payload."""
        ...

    def decode_batch(
        self, payloads: Sequence[bytes], shape: tuple[int, int, int], step: int
    ) -> list[NDArray[np.int32]]:
        """Return the symbols of several payloads of one shape and step."""
        ...

    def estimate_bits(self, symbols: NDArray[np.int32], step: int) -> float:
        """Return the ideal code length in bits."""
        ...

    def quantize(self, values: NDArray[np.float64], step: int, trade: float) -> NDArray[np.int32]:
        """Return symbols for (C, h, w) latents divided by the step."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the coder as a safetensors file of integers."""
        ...


def load_coder(path: str | os.PathLike[str]) -> LatentCoder:
    """Read the coder of continuous latents that a safetensors file holds.

    Raises:
        TablesError: The file is missing, malformed or of an unknown version.
    """
    from codec.entropy.storage import read_version

    if (read_version(Path(path)) or "").startswith("context"):
        from codec.entropy.context_coder import ContextCoder  # imports torch

        return ContextCoder.load(path)
    return SymbolCoder.load(path)
