"""What a prior learns from, read from the shards of a finished dataset as it is needed.

Latents come in the order of `codec.shards.order`: a resumed run gets those that an uninterrupted
one does.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from codec.prior.denoiser import Condition
from codec.shards import LatentDataset
from codec.shards.manifest import Manifest
from train.entropy.frozen import FrozenCodec
from train.prior.latents import PriorBatch, PriorData
from train.prior.sections import PriorConfig
from train.samples.sources import DataError


class ShardLatents:
    """Latents of a finished dataset, read as they are needed.

    Raises:
        codec.shards.errors.ShardError: it is not finished, or damaged.
        DataError: its latents have several sizes, are another codec's, or lack labels.
    """

    embedding_shape = None

    def __init__(self, config: PriorConfig, frozen: FrozenCodec, accelerator: Accelerator) -> None:
        directory = config.data.shards
        assert directory is not None
        self.directory, self.batch_size = directory, config.run.batch_size
        self.dataset = LatentDataset(
            directory,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            sample_posterior=config.data.sample_posterior,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        manifest = self.dataset.manifest
        self.unreadable: dict[str, str] = {}
        _check(directory, self.dataset, frozen)
        ((h, w),) = manifest.grids
        self.shape = (manifest.latent_channels, h, w)
        wants_classes = config.prior.condition == "class"
        names = shard_classes(directory)
        if wants_classes and not names:
            raise DataError(
                f"found no labels in {directory}, expected them for prior.condition class: use "
                "condition none, or make the dataset from folders with class names"
            )
        self.class_names = names if wants_classes else ()

    def batches(self, start: int, rank: int, num_processes: int) -> Iterator[PriorBatch]:
        """This process's batches from any sample on, without end."""
        dataset, size = self.dataset, self.batch_size
        an_epoch = len(dataset) * size  # records of this rank
        if an_epoch == 0:
            raise DataError(
                f"found fewer records than a batch of {size} on each of {num_processes} processes: "
                "lower run.batch_size"
            )
        epoch, seen = divmod(start // num_processes, an_epoch)
        while True:
            dataset.set_epoch(epoch, consumed=seen)
            for number, sample in enumerate(dataset, start=seen // size):
                first = ((epoch * an_epoch) // size + number) * size * num_processes + rank * size
                yield self._batch(sample, first)
            epoch, seen = epoch + 1, 0

    def fingerprint(self) -> dict[str, Any]:
        """Which records and whose latents these are."""
        manifest = self.dataset.manifest
        digest = hashlib.sha256()
        for shard in manifest.shards:
            digest.update(f"{shard.file} {shard.sha256}\n".encode())
        return {
            "num_images": manifest.num_records,
            "sources": [self.directory],
            "latent_id": manifest.model.latent_id,
            "sha256": digest.hexdigest(),
        }

    def _batch(self, sample: dict[str, Any], first: int) -> PriorBatch:
        latents = sample["latents"]
        count = len(latents)
        labels = sample["label_id"] if self.class_names else torch.full((count,), -1)
        if self.class_names and bool((labels < 0).any()):
            raise DataError(
                f"found a record without a label in {self.directory}, expected one for "
                "every record with prior.condition class"
            )
        return PriorBatch(
            latents, labels, torch.empty(count, 0, 0), torch.arange(first, first + count)
        )


def _check(directory: str, dataset: LatentDataset, frozen: FrozenCodec) -> None:
    """Refuse latents of several sizes, or of another codec.

    Raises:
        DataError: they are.
    """
    manifest = dataset.manifest
    if len(manifest.grids) != 1:
        raise DataError(
            f"found latents of {len(manifest.grids)} sizes in {directory}, expected one: make the "
            "dataset with --size and without --buckets"
        )
    if manifest.model.latent_id not in frozen.info.accepts:
        raise DataError(
            f"found latents {manifest.model.latent_id} in {directory}, expected those of "
            f"{frozen.info.name}, {frozen.info.latent_id}: set prior.codec to the codec that made "
            "the dataset"
        )


def shard_classes(directory: str) -> tuple[str, ...]:
    """Names of a dataset's labels, by the class numbers that `LatentDataset` gives them."""
    numbers = Manifest.read(Path(directory)).label_ids()
    return tuple(sorted(numbers, key=numbers.__getitem__))


def read_held_out_shards(
    config: PriorConfig, frozen: FrozenCodec, data: PriorData
) -> tuple[Tensor, Condition]:
    """Latents (N, C, h, w) of held-out shards, spread evenly over them, and their conditions.

    Raises:
        DataError: they are another codec's, or one is of a class that is not trained on.
    """
    directory = config.run.validation_shards
    assert directory is not None
    dataset = LatentDataset(directory, shuffle=False, rank=0, world_size=1)
    _check(directory, dataset, frozen)
    count = dataset.manifest.num_records
    wanted = np.linspace(0, count - 1, min(count, config.run.validation_images)).round()
    chosen = set(wanted.astype(int).tolist())
    records = [record for number, record in enumerate(dataset) if number in chosen]
    latents = torch.stack([record["latents"] for record in records])
    if not data.class_names:
        return latents, Condition()
    names = [record["label"] for record in records]
    if unknown := sorted(set(names) - set(data.class_names)):
        raise DataError(
            f"found held-out latents of class {unknown[0]!r} in {directory}, expected only classes "
            f"that are trained on: {', '.join(data.class_names)}"
        )
    return latents, Condition(torch.tensor([data.class_names.index(name) for name in names]))
