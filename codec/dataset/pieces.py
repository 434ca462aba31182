"""A piece of a unit of work, and the three steps that make records of it.

A unit, which becomes a shard, is cut into pieces of so many source images that each gives about one
batch. Batches never reach beyond a piece, so what the network sees together is the same for every
engine and any number of workers: the records depend on the plan alone.

    Piece -> prepare -> Prepared -> encode -> Encoded -> pack -> Outcome
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np

from codec.dataset.coding import Coding, make_coding
from codec.dataset.encoder import EncodedImage, Encoder, ModelSpec
from codec.dataset.items import Item
from codec.dataset.preprocess import Preprocessing, load_item
from codec.dataset.profile import StageTimes
from codec.images import Pixels
from codec.shards.forms import LatentData, ShardForm
from codec.shards.records import ItemError, RecordInfo

_BATCHES_WITH_BUCKETS = 4  # a piece's images fall into several shapes then


@dataclass(frozen=True, slots=True)
class Work:
    """All that decides what becomes of an item: plain data that travels to worker processes.

    Attributes:
        model: What encodes.
        preprocessing: What pixels it sees.
        form: Of the shards.
        step: Quantiser step in units of 2**-16; 0 without one.
        batch_size: Most images that the network sees at once.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    form: ShardForm
    step: int
    batch_size: int

    @property
    def piece_images(self) -> int:
        """Source images of a piece."""
        copies = len(self.preprocessing.key_endings())
        batches = _BATCHES_WITH_BUCKETS if self.preprocessing.buckets else 1
        return max(1, batches * self.batch_size // copies)


@dataclass(frozen=True, slots=True)
class Piece:
    """Source images that are handled together.

    Attributes:
        number: Counts the pieces of a run, which are written in this order.
        unit: Number of the unit, and so of the shard, that it is of.
        is_last: Whether the unit ends with it.
        entries: The images, and what the plan knows to be wrong.
    """

    number: int
    unit: int
    is_last: bool
    entries: tuple[Item | ItemError, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A piece as pixels: uint8 (H, W, 3) each."""

    piece: Piece
    records: list[tuple[RecordInfo, Pixels]]
    errors: list[ItemError]
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A piece as latents."""

    piece: Piece
    records: list[tuple[RecordInfo, EncodedImage]]
    errors: list[ItemError]
    times: StageTimes


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A piece as a shard holds it.

    Attributes:
        number: As in `Piece`.
        unit: Likewise.
        is_last: Likewise.
        num_images: Source images of the piece, with those that failed.
        records: In the order of the plan.
        errors: What gave no record.
        retried: Keys of the records that were encoded again in float32.
        batch_limit: See `Encoder`.
        times: Core-seconds of the stages.
    """

    number: int
    unit: int
    is_last: bool
    num_images: int
    records: list[tuple[RecordInfo, LatentData]]
    errors: list[ItemError]
    retried: tuple[str, ...]
    batch_limit: int | None
    times: StageTimes

    @property
    def num_bytes(self) -> int:
        """Bytes of the latents as they are stored, nearly."""
        return sum(len(data.payload or data.raw_latents.data) for _, data in self.records)


def cut_unit(
    unit: int, entries: Iterable[Item | ItemError], piece_images: int, first_number: int
) -> Iterator[Piece]:
    """Cuts the entries of a unit into pieces; a unit without entries gives none."""
    source = iter(entries)
    number, held = first_number, tuple(islice(source, piece_images))
    while held:
        following = tuple(islice(source, piece_images))
        yield Piece(number, unit, not following, held)
        number, held = number + 1, following


def prepare(
    piece: Piece, preprocessing: Preprocessing, note: Callable[[int], None] = lambda _: None
) -> Prepared:
    """Reads and decodes the images of a piece.

    Args:
        piece: The piece.
        preprocessing: What to do with them.
        note: Is told which entry is being read, and -1 at the end.
    """
    prepared = Prepared(piece, [], [])
    with prepared.times.measure("prepare"):
        for position, entry in enumerate(piece.entries):
            note(position)
            found = entry if isinstance(entry, ItemError) else load_item(entry, preprocessing)
            if isinstance(found, ItemError):
                prepared.errors.append(found)
            else:
                prepared.records.extend(found)
    note(-1)
    return prepared


def cut_batches(records: list[tuple[RecordInfo, Pixels]], batch_size: int) -> list[list[int]]:
    """Returns the positions of records that go through the network together.

    They have one shape and are at most `batch_size`; shapes come in the order of their first image.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for position, (_, pixels) in enumerate(records):
        by_shape.setdefault(pixels.shape, []).append(position)
    return [
        positions[start : start + batch_size]
        for positions in by_shape.values()
        for start in range(0, len(positions), batch_size)
    ]


def encode(
    prepared: Prepared, encoder: Encoder, batch_size: int, clock: Callable[[], float]
) -> Encoded:
    """Runs the network on a piece.

    Args:
        prepared: The piece's pixels.
        encoder: The network.
        batch_size: Most images at once.
        clock: What its time is measured with.
    """
    times = replace(prepared.times)
    found: dict[int, EncodedImage | str] = {}
    with times.measure("encode", clock):
        for batch in cut_batches(prepared.records, batch_size):
            pixels = np.stack([prepared.records[position][1] for position in batch])
            found.update(zip(batch, encoder.encode(pixels), strict=True))
    records, errors = [], list(prepared.errors)
    for position, (info, _) in enumerate(prepared.records):
        result = found[position]
        if isinstance(result, str):
            errors.append(ItemError(info.key, info.source, f"{info.source}: {result}"))
        else:
            records.append((info, result))
    return Encoded(prepared.piece, records, errors, times)


def pack(encoded: Encoded, coding: Coding, batch_limit: int | None = None) -> Outcome:
    """Codes the latents of a piece as its shard holds them."""
    with encoded.times.measure("pack"):
        records, errors = coding.code(encoded.records)
    piece = encoded.piece
    return Outcome(
        number=piece.number,
        unit=piece.unit,
        is_last=piece.is_last,
        num_images=len(piece.entries),
        records=records,
        errors=encoded.errors + errors,
        retried=tuple(info.key for info, image in encoded.records if image.is_retried),
        batch_limit=batch_limit,
        times=encoded.times,
    )


class Steps:
    """The steps as a process does them, with the network and the coder loaded when first used."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def encoder(self) -> Encoder:
        """The network."""
        return Encoder(self.work.model)

    @cached_property
    def coding(self) -> Coding:
        """The entropy coder."""
        return make_coding(self.work.model, self.work.form, self.work.step)

    def load(self, *, encoder: bool) -> None:
        """Loads the coder now, and with `encoder` the network."""
        self.coding  # noqa: B018 # a property that is loaded by being asked for
        if encoder:
            self.encoder  # noqa: B018

    def prepare(self, piece: Piece, note: Callable[[int], None] = lambda _: None) -> Prepared:
        """See `prepare`."""
        return prepare(piece, self.work.preprocessing, note)

    def encode(self, prepared: Prepared, clock: Callable[[], float]) -> Encoded:
        """See `encode`."""
        return encode(prepared, self.encoder, self.work.batch_size, clock)

    def pack(self, encoded: Encoded) -> Outcome:
        """See `pack`."""
        loaded = "encoder" in self.__dict__
        return pack(encoded, self.coding, self.encoder.batch_limit if loaded else None)
