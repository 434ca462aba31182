"""Raw latents of records of a dataset, decoded, in order: all of them, or some spread evenly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.shards.decoding import LatentDecoder
from codec.shards.forms import Content
from codec.shards.index import IndexedRecord, read_header
from codec.shards.layout import index_name
from codec.shards.manifest import Manifest
from codec.shards.reader import ShardReader, iter_records
from codec.shards.records import RecordInfo

_TOGETHER = 32  # records that are decoded together


@dataclass(frozen=True, slots=True, eq=False)
class DecodedRecord:
    """One record.

    Attributes:
        position: In the dataset.
        info: What is known of it.
        raw_latents: float32 (C, h, w).
        log_variance: float32 (C, h, w), where the dataset has posteriors.
    """

    position: int
    info: RecordInfo
    raw_latents: NDArray[np.float32]
    log_variance: NDArray[np.float32] | None


def decoded_records(
    directory: Path, manifest: Manifest, *, limit: int | None = None, model: str | None = None
) -> Iterator[DecodedRecord]:
    """Yields records of a dataset in order.

    Args:
        directory: Of the dataset.
        manifest: Of the dataset.
        limit: How many, spread evenly over the dataset; None for all.
        model: Where to find the tables of `.lc` files, if not among the models at hand.

    Raises:
        LatentCodecError: A shard is damaged, or the model is not at hand.
    """
    decoder = LatentDecoder(manifest.latent_channels, manifest.factor, model)
    total = manifest.num_records
    chosen = None
    if limit is not None and limit < total:
        chosen = {number * total // limit for number in range(limit)}
    first = 0
    for shard, entry in enumerate(manifest.shards):
        wanted = chosen is None or any(
            first <= place < first + entry.num_records for place in chosen
        )
        if wanted:
            yield from _of_shard(directory, shard, first, chosen, decoder)
        first += entry.num_records


def _of_shard(
    directory: Path, shard: int, first: int, chosen: set[int] | None, decoder: LatentDecoder
) -> Iterator[DecodedRecord]:
    header = read_header(directory / index_name(shard))
    waiting: list[tuple[int, IndexedRecord]] = []
    with ShardReader(directory, header) as reader:
        for position, (_, record) in enumerate(iter_records(directory, shard), start=first):
            if chosen is None or position in chosen:
                waiting.append((position, record))
            if len(waiting) == _TOGETHER:
                yield from _decoded(reader, waiting, decoder)
                waiting = []
        yield from _decoded(reader, waiting, decoder)


def _decoded(
    reader: ShardReader, records: Sequence[tuple[int, IndexedRecord]], decoder: LatentDecoder
) -> Iterator[DecodedRecord]:
    if reader.header.form.content is Content.LC:
        bodies = [reader.read_body(record) for _, record in records]
        for (position, record), latents in zip(records, decoder.decode(bodies), strict=True):
            yield DecodedRecord(position, record.info, latents, None)
        return
    for position, record in records:
        raw = reader.read_raw(record)
        yield DecodedRecord(position, record.info, raw.raw_latents, raw.log_variance)
