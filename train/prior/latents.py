"""What a prior learns from: scaled latents of images that are encoded once, at the start.

Which latents sample i is follows from (seed, i) alone, whatever the process, the batch size or the
moment. `train.prior.shard_latents` reads a dataset's shards instead.

Legend: B batch, C channels, h w latent grid, L tokens, D their width.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from codec.dataset.preprocess import center_square
from codec.images import Pixels
from codec.latents import Scaling
from train.entropy.encoding import encode_images
from train.entropy.frozen import FrozenCodec
from train.prior.embeddings import Embeddings
from train.prior.sections import PriorConfig, PriorDataConfig
from train.samples.loader import ShareSampler
from train.samples.pool import open_sources
from train.samples.sources import DataError, ImageSource
from train.sections import DataConfig

ORDER = 0
"""Stream of random numbers: the order of an epoch."""


class PriorBatch(NamedTuple):
    """Latents of one process and step.

    Attributes:
        latents: float32 (B, C, h, w), scaled.
        labels: int64 (B,) class numbers; -1 without classes.
        embeddings: float32 (B, L, D), empty without texts.
        indices: int64 (B,) numbers of the samples.
    """

    latents: Tensor
    labels: Tensor
    embeddings: Tensor
    indices: Tensor


class PriorData(Protocol):
    """What a prior is trained on.

    Attributes:
        class_names: by number; empty without classes.
        shape: (C, h, w).
        embedding_shape: (L, D), or None without texts.
        unreadable: why images cannot be read, by their keys.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    embedding_shape: tuple[int, int] | None
    unreadable: dict[str, str]

    def batches(self, start: int, rank: int, num_processes: int) -> Iterator[PriorBatch]:
        """One process's batches from any sample on, without end."""

    def fingerprint(self) -> dict[str, Any]:
        """Which images, and whose latents, these are."""


class Squares:
    """Images of a source, cut to squares in the middle and scaled to one size."""

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        return self.source.key(i)

    def size_bytes(self, i: int) -> int:
        return self.source.size_bytes(i)

    def label(self, i: int) -> int:
        return self.source.label(i)

    def load(self, i: int) -> Pixels:
        return np.ascontiguousarray(center_square(self.source.load(i), self.size))


class ImageLatents:
    """Latents of images, encoded once at the start of a run and kept in memory.

    Args:
        config: of the run.
        frozen: the autoencoder.
        accelerator: of the run; its processes share the encoding.

    Raises:
        DataError: no image can be read, or one has no embeddings.
    """

    def __init__(self, config: PriorConfig, frozen: FrozenCodec, accelerator: Accelerator) -> None:
        data = config.data
        self.config, self.latent_id = config, frozen.info.latent_id
        self.pool = open_sources(image_settings(data))
        self.class_names = self.pool.classes if config.prior.condition == "class" else ()
        embeddings = None if data.embeddings is None else Embeddings.read(data.embeddings)
        self.embedding_shape = None if embeddings is None else embeddings.shape
        encoded = encode_squares(frozen, self.pool, data, accelerator, flip=data.flip)
        self.latents, self.unreadable = encoded.latents, encoded.unreadable
        self.shape = encoded.shape
        self.labels = encoded.labels if self.class_names else torch.full_like(encoded.labels, -1)
        self.texts = None if embeddings is None else embeddings.of(encoded.keys, data.folders)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batches(self, start: int, rank: int, num_processes: int) -> Iterator[PriorBatch]:
        """One process's batches from any sample on, without end."""
        sampler = ShareSampler(start, self.config.run.batch_size, rank, num_processes)
        return map(self._batch, sampler)

    def fingerprint(self) -> dict[str, Any]:
        """Which images and whose latents these are; see `ImagePool.fingerprint`."""
        listed, size = self.pool.fingerprint(), self.config.data.size
        digest = hashlib.sha256(f"{listed['sha256']} {self.latent_id} {size}".encode())
        return {**listed, "latent_id": self.latent_id, "sha256": digest.hexdigest()}

    def _batch(self, indices: Iterable[int]) -> PriorBatch:
        numbers = list(indices)
        places = torch.tensor([self._place(number) for number in numbers])
        texts = torch.empty(len(numbers), 0, 0) if self.texts is None else self.texts[places]
        return PriorBatch(self.latents[places], self.labels[places], texts, torch.tensor(numbers))

    def _place(self, index: int) -> int:
        """The latents that a sample is; each is one sample in an epoch."""
        epoch, position = divmod(index, len(self.latents))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.config.run.seed, epoch, ORDER))
            self._epoch, self._order = epoch, rng.permutation(len(self.latents))
        return int(self._order[position])


class EncodedSquares(NamedTuple):
    """Images as scaled latents.

    Attributes:
        latents: float32 (N, C, h, w); a mirrored copy stands behind its image.
        labels: int64 (N,), -1 without classes.
        keys: of each, N.
        unreadable: why images cannot be read, by their keys.
    """

    latents: Tensor
    labels: Tensor
    keys: list[str]
    unreadable: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        c, h, w = self.latents.shape[1:]
        return c, h, w


def encode_squares(
    frozen: FrozenCodec,
    source: ImageSource,
    data: PriorDataConfig,
    accelerator: Accelerator,
    *,
    flip: bool,
) -> EncodedSquares:
    """Encode the middles of images.

    Raises:
        DataError: none can be read.
    """
    squares = Squares(source, data.size)
    found = encode_images(frozen, squares, range(len(squares)), accelerator, flip=flip)
    if not found.latents:
        first = next(iter(found.unreadable.values()), "there is none")
        raise DataError(f"none of the images of {source.name} can be read; {first}")
    kept = [i for i in range(len(squares)) if squares.key(i) not in found.unreadable]
    copies = 2 if flip else 1
    scaling = Scaling.of(frozen.codec.autoencoder.config)
    return EncodedSquares(
        latents=scaling.scale(torch.from_numpy(np.stack(found.latents))),
        labels=torch.tensor([source.label(i) for i in kept]).repeat_interleave(copies),
        keys=[squares.key(i) for i in kept for _ in range(copies)],
        unreadable=found.unreadable,
    )


def image_settings(data: PriorDataConfig) -> DataConfig:
    """Where the images come from."""
    return DataConfig(folders=data.folders, exclude=data.exclude, labels=True)


def class_numbers(files: Sequence[Path], class_names: Sequence[str]) -> Tensor:
    """int64 (N,) numbers of held-out files by their folders' names; -1 without classes.

    Raises:
        DataError: one is of a class that is not trained on.
    """
    if not class_names:
        return torch.full((len(files),), -1)
    if unknown := sorted({path.parent.name for path in files} - set(class_names)):
        raise DataError(
            f"found held-out images of class {unknown[0]}, expected only classes that are trained "
            f"on: {', '.join(class_names)}"
        )
    return torch.tensor([class_names.index(path.parent.name) for path in files])
