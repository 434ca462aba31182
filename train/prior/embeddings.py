"""Precomputed embeddings of texts, one for each image: the condition of a prior for text.

Whoever has a text encoder runs it once over the captions and saves the results; nothing here knows
which encoder it was. Legend: N images, L tokens, D their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from train.samples.sources import DataError


@dataclass(frozen=True)
class Embeddings:
    """Tensors of one shape by the names of images.

    Attributes:
        path: where they were read.
        tensors: (L, D) each; an image's name is its path below data.folders without the suffix.
    """

    path: str
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: str) -> "Embeddings":
        """Read a safetensors file.

        Raises:
            DataError: it is none, or its tensors are not of one shape (L, D) of floats.
        """
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"found no usable data.embeddings {path} ({error}), expected a safetensors file"
            ) from error
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        good = all(tensor.is_floating_point() for tensor in tensors.values())
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or not good:
            raise DataError(
                f"found tensors of shapes {sorted(shapes)[:3]} in {path}, expected one shape "
                "(tokens, width) of floats for all images"
            )
        return cls(path, tensors)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)."""
        tokens, width = next(iter(self.tensors.values())).shape
        return tokens, width

    def of(self, keys: Sequence[str], folders: Sequence[str]) -> Tensor:
        """float32 (N, L, D) of images by their paths.

        Raises:
            DataError: one has none.
        """
        return torch.stack([self._one(key, folders) for key in keys]).float()

    def _one(self, key: str, folders: Sequence[str]) -> Tensor:
        path = Path(key)
        names = [
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            if path.is_relative_to(folder)
        ]
        for name in names:
            if name in self.tensors:
                return self.tensors[name]
        raise DataError(
            f"found no tensor {names[0] if names else key!r} in {self.path}, expected one for "
            "every image, named like it without the suffix"
        )
