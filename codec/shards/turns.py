"""TurnReader: finds, reads and decodes the records of each turn of an epoch."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.errors import LatentCodecError
from codec.shards.decoding import LatentDecoder
from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content
from codec.shards.index import IndexedRecord, ShardHeader, parse_record, record_lines
from codec.shards.layout import index_name
from codec.shards.manifest import Manifest
from codec.shards.order import EpochOrder, Group
from codec.shards.reader import ShardReader
from codec.shards.samples import (
    ChannelScaling,
    Sample,
    describe,
    describe_batch,
    key_seed,
    sampled,
)

MAX_OPEN_FILES = 128


@dataclass(frozen=True, slots=True, eq=False)
class OpenGroup:
    """A group of shards with the lines of their indices.

    Attributes:
        paths: Of the indices.
        headers: Of the shards.
        lines: Of all records, those of the first shard first.
        owners: Which shard of the group each line belongs to.
    """

    paths: Sequence[Path]
    headers: Sequence[ShardHeader]
    lines: Sequence[bytes]
    owners: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A record of an open group; `part` changes where what was read before is not needed again."""

    group: OpenGroup
    line: int
    part: int


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Records that are read and decoded together."""

    places: Sequence[Place]


class TurnReader:
    """Reads the records of one epoch in one process."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        epoch: int,
        seed: int,
        decode: bool,
        sample_posterior: bool,
        scaling: ChannelScaling | None,
        decoder: LatentDecoder,
    ) -> None:
        """Opens nothing yet; see `LatentDataset` for the arguments."""
        self._directory = directory
        self._manifest = manifest
        self._decodes = decode
        self._scaling = scaling
        self._sample_seed = (seed, epoch) if sample_posterior else None
        self._decoder = decoder
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._part = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def places(self, order: EpochOrder, start: int = 0) -> Iterator[Place]:
        """Yields the records of an epoch from a place on, none of them parsed or read."""
        part = 0
        for group in order.groups(start):
            opened = self._open(group)
            passed = start - group.start  # records of this group that are before the place
            for lines in self._parts(order, group, opened):
                part += 1
                yield from (Place(opened, line, part) for line in lines[max(passed, 0) :])
                passed -= len(lines)

    def bucketed_turns(self, order: EpochOrder, size: int) -> Iterator[Turn]:
        """Yields full batches of records of one size as they come together, then what is left."""
        waiting: dict[tuple[int, int], list[Place]] = {}
        for place in self.places(order):
            grid = self._record(place).location.grid
            places = waiting.setdefault(grid, [])
            places.append(place)
            if len(places) == size:
                yield Turn(waiting.pop(grid))
        yield from (Turn(places) for _, places in sorted(waiting.items()))

    def samples(self, turn: Turn, label_ids: Mapping[str, int]) -> Iterator[Sample]:
        """Yields the records of a turn."""
        records = [self._record(place) for place in turn.places]
        if not self._decodes:
            for place, record in zip(turn.places, records, strict=True):
                body = self._reader(place).read_body(record)
                yield {"lc": body, **describe(record.info, label_ids)}
            return
        for record, latents in zip(records, self._latents(turn, records), strict=True):
            yield {"latents": self._scaled(latents), **describe(record.info, label_ids)}

    def batch(self, turn: Turn, label_ids: Mapping[str, int]) -> Sample:
        """Returns the records of a turn, which have one size, as a batch."""
        records = [self._record(place) for place in turn.places]
        described = describe_batch([record.info for record in records], label_ids)
        if not self._decodes:
            pairs = zip(turn.places, records, strict=True)
            return {"lc": [self._reader(p).read_body(r) for p, r in pairs], **described}
        grid = records[0].location.grid
        batch = np.empty((len(records), self._manifest.latent_channels, *grid), np.float32)
        for place, latents in enumerate(self._latents(turn, records)):
            if latents.shape != batch.shape[1:]:
                raise ShardError(
                    f"{turn.places[0].group.paths[0].parent}: found latents of shape "
                    f"{latents.shape} in the record {records[place].info.key!r}, expected "
                    f"{batch.shape[1:]}; write its shard again"
                )
            batch[place] = latents
        return {"latents": self._scaled(batch), **described}

    def _latents(
        self, turn: Turn, records: Sequence[IndexedRecord]
    ) -> Iterable[NDArray[np.float32]]:
        """Returns the raw latents of each record."""
        if self._manifest.form.content is Content.LC:
            return self._decoded(turn, records)
        return (
            self._numbers(place, record) for place, record in zip(turn.places, records, strict=True)
        )

    def _numbers(self, place: Place, record: IndexedRecord) -> NDArray[np.float32]:
        raw = self._reader(place).read_raw(record)
        if self._sample_seed is None:
            return raw.raw_latents
        assert raw.log_variance is not None  # or the dataset would have been refused
        seed = (*self._sample_seed, key_seed(record.info.key))
        return sampled(raw.raw_latents, raw.log_variance, seed)

    def _decoded(self, turn: Turn, records: Sequence[IndexedRecord]) -> list[NDArray[np.float32]]:
        bodies = [
            self._reader(place).read_body(record)
            for place, record in zip(turn.places, records, strict=True)
        ]
        try:
            return self._decoder.decode(bodies)
        except LatentCodecError:
            # One by one, to name the record that is damaged.
            for place, record, body in zip(turn.places, records, bodies, strict=True):
                try:
                    self._decoder.decode([body])
                except LatentCodecError as error:
                    path = self._reader(place).path
                    raise ShardError(f"{path}: record {record.info.key!r}: {error}") from error
            raise

    def _scaled(self, raw_latents: NDArray[np.float32]) -> Tensor:
        latents = torch.from_numpy(raw_latents)
        return latents if self._scaling is None else self._scaling.apply(latents)

    def _record(self, place: Place) -> IndexedRecord:
        group = place.group
        return parse_record(group.paths[group.owners[place.line]], group.lines[place.line])

    def _reader(self, place: Place) -> ShardReader:
        header = place.group.headers[place.group.owners[place.line]]
        if place.part > self._part:
            self._part = place.part
            for opened in self._readers.values():
                opened.forget()
        reader = self._readers.get(header.file_name)
        if reader is None:
            while len(self._readers) >= MAX_OPEN_FILES:
                self._readers.popitem(last=False)[1].close()
            keeps = header.form.container is Container.PARQUET
            reader = self._readers[header.file_name] = ShardReader(
                self._directory, header, keep=keeps
            )
        self._readers.move_to_end(header.file_name)
        return reader

    def _open(self, group: Group) -> OpenGroup:
        """Reads the indices of a group's shards."""
        paths = [self._directory / index_name(shard) for shard in group.shards]
        headers, lines, owners = [], [], []
        for number, (shard, path) in enumerate(zip(group.shards, paths, strict=True)):
            header, more = record_lines(path)
            expected = self._manifest.shards[shard]
            if (header.sha256, header.num_records) != (expected.sha256, expected.num_records):
                raise ShardError(
                    f"{path}: found the index of another shard than the manifest names; copy the "
                    "dataset again"
                )
            headers.append(header)
            lines += more
            owners.append(np.full(len(more), number))
        return OpenGroup(paths, headers, lines, np.concatenate(owners))

    def _parts(self, order: EpochOrder, group: Group, opened: OpenGroup) -> Iterator[list[int]]:
        """Yields a group's records in order, in parts that need little memory to read."""
        if self._manifest.form.container is Container.TAR:
            yield order.places(group).tolist()
            return
        blocks, last, number = [], None, -1
        for line, owner in enumerate(opened.owners.tolist()):
            member = parse_record(opened.paths[owner], opened.lines[line]).location.member
            if (owner, member) != last:
                last, number = (owner, member), number + 1
            blocks.append(number)
        yield from (part.tolist() for part in order.places_by_block(group, blocks))


def cut_turns(places: Iterable[Place], size: int) -> Iterator[Turn]:
    """Cuts records into turns of one size, the last one excepted."""
    waiting: list[Place] = []
    for place in places:
        waiting.append(place)
        if len(waiting) == size:
            yield Turn(waiting)
            waiting = []
    if waiting:
        yield Turn(waiting)
