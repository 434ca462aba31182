"""Images that were encoded once, of which each sample is a random crop.

Which image sample i is from, and its place, follow from (seed, i) alone, as in `train.data`:
whatever the process, the batch size or the moment.

Legend: S side of a crop in cells.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from accelerate import Accelerator

from train.entropy.encoding import EncodedImages, encode_images
from train.entropy.frozen import Encoded, Frozen
from train.entropy.sections import CoderConfig
from train.samples.loader import ShareSampler
from train.samples.pool import open_sources
from train.samples.sources import DataError

ORDER, CROP, ENCODED = 0, 1, 2
"""Streams of random numbers: images of an epoch, crops, the order in which images are encoded."""


class EncodedDataset(ABC):
    """Random crops of encoded images; sample i is drawn from (seed, i) and i may grow without end.

    Args:
        config: of the run.
        frozen: the autoencoder.
        accelerator: of the run; its processes share the encoding.

    Attributes:
        latents: of the images in use, or their codes; mirrored copies among them.
        num_images: in use.
        unreadable: why images cannot be read, by their keys.
        notes: what was left out, in sentences.

    Raises:
        DataError: no image is left.
    """

    def __init__(self, config: CoderConfig, frozen: Frozen, accelerator: Accelerator) -> None:
        data = config.data
        self.config = config
        self.pool = open_sources(data.images(frozen.factor))
        self.latent_id = frozen.info.latent_id
        rng = np.random.default_rng((config.run.seed, 0, ENCODED))
        found = encode_images(
            frozen,
            self.pool,
            rng.permutation(len(self.pool)).tolist(),
            accelerator,
            flip=data.flip,
            min_side=data.latent_crop,
            room_bytes=data.cache_gib * 2**30,
        )
        self.latents: list[Any] = found.latents
        self.num_images = found.num_images
        self.unreadable = found.unreadable
        self.notes = _notes(found, config)
        if not self.latents:
            raise DataError(_nothing_left(found, config))
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @abstractmethod
    def batch(self, indices: Iterable[int]) -> Any:
        """Several samples in tensors."""

    def crop(self, index: int, rng: np.random.Generator, stride: int = 1) -> Encoded:
        """Crop (planes, S, S) of sample number `index`, at multiples of a stride."""
        side = self.config.data.latent_crop
        planes = self.latents[self.image_number(index)]
        top, left = (
            stride * int(rng.integers((cells - side) // stride + 1)) for cells in planes.shape[1:]
        )
        found: Encoded = planes[:, top : top + side, left : left + side]
        return found

    def image_number(self, index: int) -> int:
        """The latents that a sample is from; each has one sample in an epoch."""
        epoch, position = divmod(index, len(self.latents))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.config.run.seed, epoch, ORDER))
            self._epoch, self._order = epoch, rng.permutation(len(self.latents))
        return int(self._order[position])

    def batches(self, start: int, rank: int, num_processes: int) -> Iterator[Any]:
        """One process's batches from any sample on, without end."""
        sampler = ShareSampler(start, self.config.run.batch_size, rank, num_processes)
        return map(self.batch, sampler)

    def fingerprint(self) -> dict[str, Any]:
        """Which images and whose latents these are; see `ImagePool.fingerprint`.

        `num_images` are those in use, of `num_listed`.
        """
        listed = self.pool.fingerprint()
        digest = hashlib.sha256(f"{listed['sha256']} {self.latent_id}".encode())
        return {
            **listed,
            "num_images": self.num_images,
            "num_listed": listed["num_images"],
            "latent_id": self.latent_id,
            "sha256": digest.hexdigest(),
        }


def _notes(found: EncodedImages, config: CoderConfig) -> list[str]:
    notes = []
    if found.num_small:
        notes.append(
            f"left out {found.num_small} images whose latents have fewer than data.latent_crop="
            f"{config.data.latent_crop} rows or columns"
        )
    if found.num_beyond:
        notes.append(
            f"left out {found.num_beyond} images, chosen at random: the latents of the others fill "
            f"data.cache_gib={config.data.cache_gib:g}"
        )
    return notes


def _nothing_left(found: EncodedImages, config: CoderConfig) -> str:
    if found.num_beyond:
        return (
            f"the latents of one image do not fit in data.cache_gib={config.data.cache_gib:g}: "
            "raise it"
        )
    if found.num_small:
        return (
            f"none of the training images has {config.data.latent_crop} rows and columns of "
            "latents: lower data.latent_crop, or give larger images"
        )
    first = next(iter(found.unreadable.values()))
    return f"none of the {len(found.unreadable)} training images can be read; {first}"
