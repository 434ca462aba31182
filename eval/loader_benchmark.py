"""How many latents a second training gets out of a dataset, beside the entropy decoder alone.

Both run in as many worker processes, under the same DataLoader, with one thread each. The decoder
alone gets files that are in memory already and hands nothing over but their number, so what lies
between the two is reading, checking, batching and the way to the main process.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from codec.catalog import model_directory
from codec.packing import RawLatents, read_file
from codec.shards.decoding import LatentDecoder, named_model, packer_of
from codec.shards.entries import ModelIds
from codec.shards.forms import Content, LatentData, ShardForm
from codec.shards.loader import LatentDataset
from codec.shards.manifest import finish_dataset
from codec.shards.reader import iter_records
from codec.shards.records import RecordInfo
from codec.shards.writer import ShardWriter

DISTINCT_FILES = 64  # made-up `.lc` files repeat, since making one takes longer than reading it
TOGETHER = 32  # files that the decoder alone gets at once, or a batch if that is smaller


@dataclass(frozen=True, slots=True)
class LoaderReport:
    """Speed of one dataset.

    Attributes:
        content: What its shards hold.
        grid: (h, w) of most of its latents.
        records: In an epoch.
        batch_size: Of the batches.
        workers: Processes.
        rounds: Timed epochs; figures are medians.
        loader_per_s: Latents a second that arrive in the main process.
        decoder_per_s: Files a second that the entropy decoder alone decodes in as many processes;
            None for raw content.
    """

    content: str
    grid: tuple[int, int]
    records: int
    batch_size: int
    workers: int
    rounds: int
    loader_per_s: float
    decoder_per_s: float | None

    @property
    def share(self) -> float | None:
        """Speed of the loader in parts of the decoder's."""
        return None if self.decoder_per_s is None else self.loader_per_s / self.decoder_per_s

    def line(self) -> str:
        """Returns a line for people."""
        rows, columns = self.grid
        text = (
            f"{self.content} {columns}x{rows}: {self.loader_per_s:,.0f} latents/s from the loader "
            f"({self.workers} workers, batches of {self.batch_size})"
        )
        if self.decoder_per_s is None or self.share is None:
            return text
        return f"{text}, {self.share:.0%} of the entropy decoder alone, {self.decoder_per_s:,.0f}/s"

    def to_json(self) -> str:
        """Returns the figures as a JSON object."""
        return json.dumps({**asdict(self), "share": self.share})


class _Decoding(IterableDataset[int]):
    """Decodes files that are in memory, and yields how many at a time."""

    def __init__(self, bodies: list[bytes], decoder: LatentDecoder, together: int) -> None:
        super().__init__()
        self._parts = [bodies[i : i + together] for i in range(0, len(bodies), together)]
        self._decoder = decoder

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for part in self._parts[first::step]:
            self._decoder.decode(part)
            yield len(part)


def measure_loader(
    directory: Path,
    *,
    batch_size: int = 128,
    workers: int = 2,
    rounds: int = 3,
    max_files: int = 1024,
    model: str | None = None,
) -> LoaderReport:
    """Times epochs of a dataset, and in turn the decoder alone.

    Args:
        directory: Of a finished dataset.
        batch_size: Of the batches.
        workers: Processes; 0 for the main process alone.
        rounds: Timed epochs, after one that is not.
        max_files: How many files at most the decoder alone decodes in a round.
        model: Where to find the tables of `.lc` files, if not among the models at hand.

    Raises:
        LatentCodecError: The dataset is damaged, or the model is not at hand.
    """
    dataset = LatentDataset(directory, batch_size=batch_size, drop_last=False, model=model)
    manifest = dataset.manifest
    keep = workers > 0
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=keep)
    alone, bodies = None, list[bytes]()
    if manifest.form.content is Content.LC:
        bodies = _bodies(directory, len(manifest.shards), max_files)
        decoder = LatentDecoder(manifest.latent_channels, manifest.factor, model)
        decoding = _Decoding(bodies, decoder, min(TOGETHER, batch_size))
        alone = DataLoader(decoding, batch_size=None, num_workers=workers, persistent_workers=keep)
    loading_s, decoding_s = [], []
    for number in range(rounds + 1):
        dataset.set_epoch(number)
        start = time.perf_counter()
        found = sum(len(batch["latents"]) for batch in loader)
        loading_s.append((time.perf_counter() - start) / found)
        if alone is not None:
            start = time.perf_counter()
            found = sum(alone)
            decoding_s.append((time.perf_counter() - start) / found)
    return LoaderReport(
        content=manifest.form.content.value,
        grid=max(manifest.grids, key=lambda grid: manifest.grids[grid]),
        records=manifest.num_records,
        batch_size=batch_size,
        workers=workers,
        rounds=rounds,
        loader_per_s=1 / statistics.median(loading_s[1:]),
        decoder_per_s=1 / statistics.median(decoding_s[1:]) if decoding_s else None,
    )


def write_synthetic(
    directory: Path, content: Content, *, records: int, side: int = 64, model: str | None = None
) -> None:
    """Writes a dataset of smooth random latents of a model's deviations, to be timed.

    Args:
        directory: A new folder.
        content: Of its shards.
        records: How many.
        side: Of the latents, in cells.
        model: Whose tables code `.lc` files; the default one when None.
    """
    info = named_model(str(model_directory(model)))
    packer = packer_of(info)
    form = ShardForm(content=content)
    step = packer.step_units(None, None)
    directory.mkdir(parents=True)
    pixels = side * packer.factor
    packed: list[LatentData] = []
    if content is Content.LC:
        for number in range(min(records, DISTINCT_FILES)):
            latents = _smooth(np.random.default_rng(number), packer.latent_channels, side)
            payload = packer.pack(latents, step, (pixels, pixels))
            packed.append(LatentData(packer.unpack(read_file(payload)), payload))
    for shard, first in enumerate(range(0, records, 1024)):
        with ShardWriter(directory, shard, form) as writer:
            for number in range(first, min(first + 1024, records)):
                if content is Content.LC:
                    data = packed[number % len(packed)]
                else:
                    rng = np.random.default_rng(number)
                    data = LatentData(_smooth(rng, packer.latent_channels, side))
                size = (pixels, pixels)
                key = f"{number:08d}"
                writer.add(RecordInfo(key, key, *size, crop=(0, 0, *size), size=size), data)
            writer.commit()
    finish_dataset(
        directory,
        {
            "created_by": "latent-codec-eval loader",
            "model": ModelIds(info.name, info.latent_id, info.coder_id, info.decoder_id).to_json(),
            "latent_channels": packer.latent_channels,
            "factor": packer.factor,
            "scaling": {"shift_factor": 0.0, "scaling_factor": 1.0},
            **form.to_json(),
        },
    )


def _smooth(rng: np.random.Generator, channels: int, side: int) -> RawLatents:
    """Latents with the neighbourhoods of photographs: coarse parts and a little noise."""
    coarse = torch.from_numpy(rng.normal(0, 3, (1, channels, side // 8, side // 8)))
    parts = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].numpy()
    latents: RawLatents = (parts + rng.normal(0, 0.5, parts.shape)).astype(np.float32)
    return latents


def _bodies(directory: Path, num_shards: int, most: int) -> list[bytes]:
    bodies: list[bytes] = []
    for shard in range(num_shards):
        for reader, record in iter_records(directory, shard):
            bodies.append(reader.read_body(record))
            if len(bodies) == most:
                return bodies
    return bodies
