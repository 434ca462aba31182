"""Random crops of latents that were encoded once.

Which image sample i is from, its place, transposition and quantiser step follow from (seed, i)
alone, as in `train.data`: whatever the process, the batch size or the moment.

Legend: B batch, C latent channels, h w cells of the latent grid, S side of a crop in cells.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from codec import quantizer
from codec.bitstream import STEPS_PER_UNIT
from train.entropy.encoding import EncodedImages, encode_images
from train.entropy.frozen import FrozenCodec, Latents
from train.entropy.sections import EntropyConfig
from train.samples.loader import ShareSampler
from train.samples.pool import open_sources
from train.samples.sources import DataError

ORDER, CROP, ENCODED = 0, 1, 2
"""Streams of random numbers: images of an epoch, crops, the order in which images are encoded."""
MEASURED = 1024
"""Images that the channels' deviations are measured on."""


class LatentBatch(NamedTuple):
    """Crops of one process and step.

    Attributes:
        latents: float32 (B, C, S, S) raw latents, rounded to whole steps as in files.
        steps: float32 (B,) in units of raw latents.
    """

    latents: Tensor
    steps: Tensor


class LatentDataset:
    """Random crops of latents; sample i is drawn from (seed, i) and i may grow without end.

    Args:
        config: of the run.
        frozen: the autoencoder.
        accelerator: of the run; its processes share the encoding.

    Attributes:
        latents: of the images in use, mirrored copies among them.
        num_images: in use.
        unreadable: why images cannot be read, by their keys.
        notes: what was left out, in sentences.
        deviations: of each channel, in raw latent units.
        quality_50_step: quantiser step of quality 50, likewise.

    Raises:
        DataError: no image is left.
    """

    def __init__(
        self, config: EntropyConfig, frozen: FrozenCodec, accelerator: Accelerator
    ) -> None:
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
        self.latents = found.latents
        self.num_images = found.num_images
        self.unreadable = found.unreadable
        self.notes = _notes(found, config)
        if not self.latents:
            raise DataError(_nothing_left(found, config))
        measured = quantizer.measure_deviations(self.latents[:MEASURED])
        self.deviations = tuple(units / STEPS_PER_UNIT for units in measured)
        self.quality_50_step = frozen.quality_50_step(self.deviations)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Latents, float]:
        """Sample number `index`: its crop (C, S, S), and the step it is rounded to."""
        config, side = self.config, self.config.data.latent_crop
        latents = self.latents[self.image_number(index)]
        rng = np.random.default_rng((config.run.seed, index, CROP))
        top, left = (int(rng.integers(cells - side + 1)) for cells in latents.shape[1:])
        quality = float(rng.uniform(config.entropy.min_quality, config.entropy.max_quality))
        crop = latents[:, top : top + side, left : left + side]
        if config.data.transpose and rng.random() < 0.5:
            crop = crop.transpose(0, 2, 1)
        step = quantizer.step_from_quality(quality, self.quality_50_step)
        return quantizer.dequantize(quantizer.quantize(crop, step), step), step / STEPS_PER_UNIT

    def image_number(self, index: int) -> int:
        """The latents that a sample is from; each has one sample in an epoch."""
        epoch, position = divmod(index, len(self.latents))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.config.run.seed, epoch, ORDER))
            self._epoch, self._order = epoch, rng.permutation(len(self.latents))
        return int(self._order[position])

    def batch(self, indices: Iterable[int]) -> LatentBatch:
        """Several samples in tensors."""
        crops, steps = zip(*map(self.__getitem__, indices), strict=True)
        return LatentBatch(torch.from_numpy(np.stack(crops)), torch.tensor(steps))

    def batches(self, start: int, rank: int, num_processes: int) -> Iterator[LatentBatch]:
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


def _notes(found: EncodedImages, config: EntropyConfig) -> list[str]:
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


def _nothing_left(found: EncodedImages, config: EntropyConfig) -> str:
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
