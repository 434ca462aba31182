"""verify: does a dataset hold what its manifest says, and can it be decoded?"""

import contextlib
import hashlib
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.catalog import UnknownModelError
from codec.console import EXPECTED_ERRORS, error_sentence
from codec.errors import LatentCodecError
from codec.packing import read_file
from codec.shards.decoding import LatentDecoder, named_model
from codec.shards.errors import ShardError
from codec.shards.forms import Content
from codec.shards.index import IndexedRecord, ShardHeader, read_header
from codec.shards.layout import ERRORS_FILE, committed_shards, index_name
from codec.shards.manifest import Manifest
from codec.shards.reader import ShardReader, iter_records
from codec.shards.statistics import LatentStatistics

MAX_PROBLEMS = 100
SAMPLE = 256

_TOGETHER = 32  # records that are decoded together
_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what is wrong.

    Attributes:
        num_shards: Shards whose checksum was computed.
        num_records: Records whose line in the index was read.
        num_decoded: Records that were read and decoded.
        problems: A sentence each, at most `MAX_PROBLEMS`.
    """

    num_shards: int
    num_records: int
    num_decoded: int
    problems: tuple[str, ...]


class _Verifier:
    """Goes through one dataset, shard by shard, and collects what is wrong."""

    def __init__(self, directory: Path, manifest: Manifest, model: str | None) -> None:
        self.directory = directory
        self.manifest = manifest
        self.decoder = LatentDecoder(manifest.latent_channels, manifest.factor, model)
        self.problems: list[str] = []
        self.num_shards = self.num_records = self.num_decoded = 0
        self.total = LatentStatistics()

    @contextlib.contextmanager
    def collecting(self, where: str = "") -> Iterator[None]:
        """Turns an error inside into a problem."""
        try:
            yield
        except EXPECTED_ERRORS as error:
            self.report(f"{where}{error_sentence(error)}")

    def report(self, problem: str) -> None:
        """Adds a problem."""
        if len(self.problems) < MAX_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)

    def check_shard(self, shard: int) -> ShardHeader | None:
        """Compares a shard's file with its index and the manifest."""
        header = read_header(self.directory / index_name(shard))
        path, expected = self.directory / header.file_name, self.manifest.shards[shard]
        stated = (header.file_name, header.size_bytes, header.sha256, header.num_records)
        if (
            header.shard != shard
            or header.form != self.manifest.form
            or stated
            != (
                expected.file,
                expected.size_bytes,
                expected.sha256,
                expected.num_records,
            )
        ):
            self.report(f"{path}: found an index of another shard than the manifest names")
        size = path.stat().st_size
        if size != header.size_bytes:
            self.report(f"{path}: found {size} bytes, expected {header.size_bytes}")
        elif _sha256(path) != header.sha256:
            self.report(f"{path}: found other bytes than its checksum says; copy it again")
        self.num_shards += 1
        self.total += header.statistics
        return header

    def check_records(
        self, shard: int, header: ShardHeader, chosen: set[int] | None, keys: sqlite3.Connection
    ) -> None:
        """Reads a shard's index, and decodes chosen records of it, or all for None."""
        statistics = LatentStatistics()
        waiting: list[IndexedRecord] = []
        reader = None
        for number, (reader, record) in enumerate(iter_records(self.directory, shard)):
            self.num_records += 1
            self._check_key(keys, record.info.key, header.file_name)
            if chosen is None or number in chosen:
                waiting.append(record)
            if len(waiting) == _TOGETHER:
                statistics += self._decode(reader, waiting)
                waiting = []
        if waiting and reader is not None:
            # The generator has closed the reader that it made.
            with ShardReader(self.directory, header) as again:
                statistics += self._decode(again, waiting)
        if chosen is None and not _agree(statistics, header.statistics):
            self.report(f"{header.file_name}: found statistics that are not those of its latents")

    def _check_key(self, keys: sqlite3.Connection, key: str, name: str) -> None:
        cursor = keys.execute("INSERT OR IGNORE INTO keys VALUES (?)", (_bytes(key),))
        if not cursor.rowcount:
            self.report(f"{name}: found the key {key!r} twice, expected each key once")

    def _decode(self, reader: ShardReader, records: Sequence[IndexedRecord]) -> LatentStatistics:
        """Decodes records one by one if together does not work, to name those that are damaged."""
        try:
            found = self._latents(reader, records)
        except UnknownModelError as error:  # once is enough: it is that of all records
            self.report(error_sentence(error))
            return LatentStatistics()
        except (LatentCodecError, OSError) as error:
            if len(records) > 1:
                parts = [self._decode(reader, [record]) for record in records]
                return sum(parts, LatentStatistics())
            sentence = error_sentence(error)
            key = records[0].info.key
            named = sentence if key in sentence else f"{reader.path}: record {key!r}: {sentence}"
            self.report(named)
            return LatentStatistics()
        statistics = LatentStatistics()
        for record, latents in zip(records, found, strict=True):
            self.num_decoded += 1
            shape = (self.manifest.latent_channels, *record.location.grid)
            if latents.shape != shape or not np.isfinite(latents).all():
                self.report(
                    f"{reader.path}: found latents of shape {latents.shape} or not finite in the "
                    f"record {record.info.key!r}, expected finite ones of shape {shape}"
                )
            else:
                statistics += LatentStatistics.of(latents)
        return statistics

    def _latents(
        self, reader: ShardReader, records: Sequence[IndexedRecord]
    ) -> list[NDArray[np.float32]]:
        if self.manifest.form.content is not Content.LC:
            return [reader.read_raw(record).raw_latents for record in records]
        bodies = [reader.read_body(record) for record in records]
        model = self.manifest.model
        for body, record in zip(bodies, records, strict=True):
            header = read_file(body).header
            if (header.latent_id, header.coder_id) != (model.latent_id, model.coder_id):
                raise ShardError(
                    f"{reader.path}: found ids {header.latent_id} and {header.coder_id} in the "
                    f"record {record.info.key!r}, expected {model.latent_id} and {model.coder_id}"
                )
        return self.decoder.decode(bodies)


def verify(
    directory: Path,
    *,
    model: str | None = None,
    sample: int = SAMPLE,
    everything: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Compares checksums, counts, keys and statistics with the manifest, and decodes records.

    Args:
        directory: Of a finished dataset.
        model: Name or directory of the model whose latents it should hold; None for any.
        sample: How many records to decode, spread at random over the dataset.
        everything: Decode them all, and compute the statistics anew.
        advance: Is called after each shard.

    Raises:
        ShardError: There is no manifest, or a damaged one.
        LatentCodecError: The model is unknown or damaged.
    """
    manifest = Manifest.read(directory)
    verifier = _Verifier(directory, manifest, model)
    if model is not None:
        _check_model(verifier, model)
    if committed_shards(directory) != list(range(len(manifest.shards))):
        verifier.report(f"{directory}: found other shards than the manifest names")
    positions = range(manifest.num_records)
    chosen = sorted(random.Random(0).sample(positions, min(sample, len(positions))))
    first = 0
    with _key_table() as keys:
        for shard, entry in enumerate(manifest.shards):
            wanted = {
                place - first for place in chosen if first <= place < first + entry.num_records
            }
            with verifier.collecting():
                header = verifier.check_shard(shard)
                if header is not None:
                    verifier.check_records(shard, header, None if everything else wanted, keys)
            first += entry.num_records
            advance()
    _check_totals(verifier)
    return Verification(
        verifier.num_shards,
        verifier.num_records,
        verifier.num_decoded,
        tuple(verifier.problems),
    )


def _check_model(verifier: _Verifier, model: str) -> None:
    info, made_by = named_model(model), verifier.manifest.model
    if made_by.latent_id is None or made_by.latent_id not in info.accepts:
        verifier.report(
            f"found latents {made_by.latent_id} of {made_by.name}, expected "
            f"{' or '.join(info.accepts)}, which {info.name} decodes"
        )
    elif made_by.coder_id is not None and not info.decodes(made_by.latent_id, made_by.coder_id):
        verifier.report(
            f"found the coder {made_by.coder_id}, expected {info.coder_id} or an earlier one of "
            f"{info.name}"
        )


def _check_totals(verifier: _Verifier) -> None:
    manifest, directory = verifier.manifest, verifier.directory
    if verifier.num_records != manifest.num_records:
        verifier.report(
            f"found {verifier.num_records} records in the indices, expected {manifest.num_records}"
        )
    if verifier.total != manifest.statistics:
        verifier.report("found statistics in the manifest that are not the sum of the shards'")
    with verifier.collecting():
        with (directory / ERRORS_FILE).open("rb") as stream:
            num_errors = sum(1 for _ in stream)
        if num_errors != manifest.num_errors:
            verifier.report(
                f"{directory / ERRORS_FILE}: found {num_errors} errors, expected "
                f"{manifest.num_errors}"
            )


def _agree(found: LatentStatistics, stated: LatentStatistics) -> bool:
    """Whether statistics are the same but for how another machine rounds the sum of an image."""
    if (found.num_images, found.num_values) != (stated.num_images, stated.num_values):
        return False
    return bool(
        np.allclose(
            found.mean, stated.mean, rtol=0, atol=1e-9 * (1 + np.max(stated.std, initial=0))
        )
        and np.allclose(found.std, stated.std, rtol=1e-9, atol=1e-12)
    )


@contextlib.contextmanager
def _key_table() -> Iterator[sqlite3.Connection]:
    """A table of keys on the disk: memory must not grow with the dataset."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(sqlite3.connect(Path(folder) / "keys.sqlite")) as connection,
    ):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
        yield connection


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
