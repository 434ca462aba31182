"""manifest.json: what a finished dataset is; its presence says that the job is done."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from codec.header import MAX_CHANNELS
from codec.latents import Scaling
from codec.shards import fields
from codec.shards.counts import (
    check_version,
    counts_from_json,
    grids_from_json,
    grids_to_json,
)
from codec.shards.entries import ModelIds, ShardEntry
from codec.shards.errors import ShardError
from codec.shards.forms import ShardForm
from codec.shards.index import ShardHeader, iter_errors, read_header
from codec.shards.layout import (
    ERRORS_FILE,
    MANIFEST_FILE,
    MAX_SHARDS,
    committed_shards,
    durable_output,
    index_name,
)
from codec.shards.statistics import LatentStatistics, statistics_in

FORMAT = "latent-codec dataset"
MAX_MANIFEST_BYTES = 2**28
MAX_LABELS = 2**16  # more distinct labels are no classes, and would make the manifest large

_FIELDS = (
    {"format", "version", "created_by", "model", "latent_channels", "factor", "scaling"}
    | {"container", "content", "posterior", "quality", "step", "preprocessing"}
    | {"images", "records", "errors", "captions", "bytes", "payload_bytes", "grids", "labels"}
    | {"latents", "statistics", "shards"}
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished dataset is.

    Attributes:
        created_by: Program and version.
        model: Whose latents they are.
        latent_channels: C.
        factor: f, pixels a side that one latent cell stands for.
        scaling: The model's own: scaled = (raw - shift_factor) * scaling_factor.
        form: Container and content.
        quality: That the `.lc` files were made with; None for raw content and models of codes.
        step: Quantiser step in units of 2**-16, likewise.
        preprocessing: What the job says of its pixels.
        num_images: Sources that gave records.
        num_records: Records.
        num_errors: Sources, or parts of them, that gave none; errors.jsonl names them.
        num_captions: Records with a caption.
        payload_bytes: Of all records alone.
        grids: How many records there are of each (h, w).
        labels: How many records there are of each label; None for more than `MAX_LABELS` labels.
        statistics: Of the raw latents as readers get them.
        shards: In order.
    """

    created_by: str
    model: ModelIds
    latent_channels: int
    factor: int
    scaling: Scaling
    form: ShardForm
    quality: float | None = None
    step: int | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    num_images: int = 0
    num_records: int = 0
    num_errors: int = 0
    num_captions: int = 0
    payload_bytes: int = 0
    grids: Mapping[tuple[int, int], int] = field(default_factory=dict)
    labels: Mapping[str, int] | None = field(default_factory=dict)
    statistics: LatentStatistics = field(default_factory=LatentStatistics)
    shards: tuple[ShardEntry, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards, without their indices."""
        return sum(shard.size_bytes for shard in self.shards)

    def label_ids(self) -> dict[str, int]:
        """Returns a class number for each label: in numeric order if all are whole numbers.

        So 0 to 999 keep their numbers. Other labels are sorted as texts, as torchvision's
        ImageFolder does.
        """
        labels = list(self.labels or {})
        if all(label.isascii() and label.isdecimal() for label in labels):
            ordered = sorted(labels, key=lambda label: (int(label), label))
        else:
            ordered = sorted(labels)
        return {label: number for number, label in enumerate(ordered)}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of manifest.json."""
        return {
            "format": FORMAT,
            "version": fields.VERSION,
            "created_by": self.created_by,
            "model": self.model.to_json(),
            "latent_channels": self.latent_channels,
            "factor": self.factor,
            "scaling": {
                "shift_factor": self.scaling.shift_factor,
                "scaling_factor": self.scaling.scaling_factor,
            },
            **self.form.to_json(),
            "quality": self.quality,
            "step": self.step,
            "preprocessing": dict(self.preprocessing),
            "images": self.num_images,
            "records": self.num_records,
            "errors": self.num_errors,
            "captions": self.num_captions,
            "bytes": self.size_bytes,
            "payload_bytes": self.payload_bytes,
            "grids": grids_to_json(self.grids),
            "labels": None if self.labels is None else dict(sorted(self.labels.items())),
            "latents": self.statistics.summary() if self.num_records else None,
            "statistics": self.statistics.to_json(),
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: It is something else, or of a newer version.
        """
        check_version(content, FORMAT)
        fields.check_names(content, _FIELDS, "the manifest")
        entries = content.get("shards")
        if not isinstance(entries, list) or len(entries) > MAX_SHARDS:
            raise ShardError("found no list of shards; fetch the file again")
        labels = content.get("labels")
        return cls(
            created_by=fields.text(content, "created_by", most=1000),
            **_described(content),
            num_images=fields.integer(content, "images", 0),
            num_records=fields.integer(content, "records", 0),
            num_errors=fields.integer(content, "errors", 0),
            num_captions=fields.integer(content, "captions", 0),
            payload_bytes=fields.integer(content, "payload_bytes", 0),
            grids=grids_from_json(fields.mapping(content, "grids")),
            labels=None if labels is None else counts_from_json(fields.mapping(content, "labels")),
            statistics=statistics_in(content, "statistics"),
            shards=tuple(ShardEntry.from_json(entry) for entry in entries),
        )

    def write(self, directory: Path) -> None:
        """Writes manifest.json, complete and safe on the disk, or not at all.

        Raises:
            OSError: The disk is full, or does not take the file.
        """
        with durable_output(directory / MANIFEST_FILE) as stream:
            stream.write(fields.readable(self.to_json()))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads the manifest of a finished dataset.

        Raises:
            ShardError: There is none, so the dataset is not finished or none at all; or it is
                damaged, or newer than this release.
        """
        path = directory / MANIFEST_FILE
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise ShardError(
                f"found no {MANIFEST_FILE} in {directory}, expected a finished dataset; let its "
                "job end, or check the path"
            ) from None
        if len(data) > MAX_MANIFEST_BYTES:
            raise ShardError(f"{path}: found more than {MAX_MANIFEST_BYTES} bytes; fetch it again")
        try:
            return cls.from_json(fields.parse_object(data))
        except ShardError as error:
            raise ShardError(f"{path}: {error}") from None


def finish_dataset(
    directory: Path, job: Mapping[str, Any], *, num_shards: int | None = None
) -> Manifest:
    """Merges the indices of all shards: writes errors.jsonl, and manifest.json last.

    Args:
        directory: Of the dataset; all its shards are committed.
        job: Says what the shards do not: "created_by", "model" (see `ModelIds`),
            "latent_channels", "factor", "scaling" ("shift_factor", "scaling_factor"),
            "container", "content", "posterior", "quality", "step", "preprocessing". Other keys
            are passed over.
        num_shards: How many there must be; None for as many as there are.

    Raises:
        ShardError: A shard is missing or damaged, or is not of the form that the job says.
        OSError: The disk is full, or a file cannot be read.
    """
    described = _described(job)
    headers = _headers(directory, described["form"], num_shards)
    counts, grids, labels = Counter[str](), Counter[tuple[int, int]](), Counter[str]()
    statistics, shards = LatentStatistics(), []
    too_many = False
    with durable_output(directory / ERRORS_FILE) as stream:
        for header in headers:
            if header.channels not in (0, described["latent_channels"]):
                raise ShardError(
                    f"{directory / index_name(header.shard)}: found {header.channels} channels, "
                    f"expected {described['latent_channels']}; write the shard again"
                )
            counts.update(
                images=header.num_images,
                records=header.num_records,
                errors=header.num_errors,
                captions=header.num_captions,
                payload=header.payload_bytes,
            )
            grids.update(header.grids)
            if not too_many:
                labels.update(header.labels)
                too_many = len(labels) > MAX_LABELS
            statistics += header.statistics
            entry = ShardEntry(
                header.file_name, header.size_bytes, header.sha256, header.num_records
            )
            shards.append(entry)
            for error in iter_errors(directory / index_name(header.shard)):
                stream.write(fields.compact(error.to_json()) + b"\n")
    manifest = Manifest(
        created_by=fields.text(job, "created_by", most=1000),
        **described,
        num_images=counts["images"],
        num_records=counts["records"],
        num_errors=counts["errors"],
        num_captions=counts["captions"],
        payload_bytes=counts["payload"],
        grids=dict(grids),
        labels=None if too_many else dict(labels),
        statistics=statistics,
        shards=tuple(shards),
    )
    manifest.write(directory)
    return manifest


def _described(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the job and the manifest have in common."""
    scaling = fields.mapping(content, "scaling")
    if fields.number(scaling, "scaling_factor") == 0:
        raise ShardError("found scaling_factor = 0, expected another number; mend it")
    step = content.get("step")
    preprocessing = content.get("preprocessing")
    return {
        "model": ModelIds.from_json(fields.mapping(content, "model")),
        "latent_channels": fields.integer(content, "latent_channels", 1, MAX_CHANNELS),
        "factor": fields.integer(content, "factor", 1, 2**10),
        "scaling": Scaling(
            fields.number(scaling, "shift_factor"), fields.number(scaling, "scaling_factor")
        ),
        "form": ShardForm.from_json(content),
        "quality": fields.optional_number(content, "quality"),
        "step": None if step is None else fields.integer(content, "step", 0, 2**32 - 1),
        "preprocessing": {} if preprocessing is None else fields.mapping(content, "preprocessing"),
    }


def _headers(directory: Path, form: ShardForm, num_shards: int | None) -> Iterator[ShardHeader]:
    """Yields the headers of shards 0 to the last; each must be of the job's form."""
    found = committed_shards(directory)
    expected = list(range(len(found) if num_shards is None else num_shards))
    if found != expected:
        odd = sorted(set(found) ^ set(expected))[0]
        raise ShardError(
            f"found {len(found)} complete shards in {directory}, expected shards 0 to "
            f"{len(expected) - 1} and no others (see shard {odd}); let the job end, or start over"
        )
    for shard in found:
        header = read_header(directory / index_name(shard))
        path = directory / header.file_name
        if header.shard != shard or header.form != form:
            raise ShardError(
                f"{path}: found shard {header.shard} as {header.form}, expected {shard} as {form}; "
                "write the shard again"
            )
        size = path.stat().st_size
        if size != header.size_bytes:
            raise ShardError(
                f"{path}: found {size} bytes, expected {header.size_bytes}; write the shard again"
            )
        yield header
