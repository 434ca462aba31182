"""Shards read by the `webdataset` library, from wherever it opens tars.

    import webdataset
    from codec.shards.webdataset import records

    dataset = webdataset.WebDataset(urls, shardshuffle=100).compose(records).shuffle(1000)

A tar member holds many records; `records` takes them apart by the shard's index, which it opens
beside the tar in the same way: a file, a URL, or the command of a pipe.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from codec.console import needs_extra
from codec.shards.errors import ShardError
from codec.shards.forms import Content
from codec.shards.index import IndexedRecord, ShardHeader, parse_record, record_lines_from

Sample = dict[str, Any]

_MEMBERS = ("lcs", "safetensors")


def records(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yields the records in the members that a WebDataset reads; for its `compose`.

    Each is {"__key__", "__url__", "json": what is known of it} with "lc": bytes, or for raw
    content "latents" (and "log_variance"): float32 (C, h, w), raw. Members of one record pass
    through as they are.

    Raises:
        ShardError: A member does not match the index, or the index is damaged.
    """
    url, header = "", None
    members: dict[int, list[IndexedRecord]] = {}
    for sample in samples:
        suffix = next((name for name in _MEMBERS if name in sample), None)
        if suffix is None or "json" in sample:
            yield sample
            continue
        if sample["__url__"] != url or header is None:
            url = sample["__url__"]
            header, members = _members(url)
        number = int(sample["__key__"].rpartition("/")[2])
        yield from _records(sample[suffix], members.get(number, []), header, url)


def _records(
    body: bytes, found: Sequence[IndexedRecord], header: ShardHeader, url: str
) -> Iterator[Sample]:
    """Takes one member apart."""
    total = sum(record.location.size for record in found)
    if not found or total > len(body):
        raise ShardError(
            f"{url}: found a member that its index does not describe; fetch both again"
        )
    # The numbers of a safetensors file stand at its end; .lc files fill their member.
    shift = len(body) - total - min(record.location.offset for record in found)
    for record in found:
        location, info = record.location, record.info
        start = location.offset + shift
        part = body[start : start + location.size] if start >= 0 else b""
        if len(part) != location.size or zlib.crc32(part) != location.crc32:
            raise ShardError(
                f"{url}: found other bytes of the record {info.key!r} than its checksum says; "
                "fetch the shard again"
            )
        sample: Sample = {"__key__": info.key, "__url__": url, "json": info.to_json()}
        if header.form.content is Content.LC:
            sample["lc"] = part
        else:
            numbers = np.frombuffer(part, header.form.dtype).astype(np.float32)
            if numbers.size % (location.grid[0] * location.grid[1]):
                raise ShardError(
                    f"{url}: found a record {info.key!r} of another size than its grid"
                )
            arrays = np.split(
                numbers.reshape(-1, *location.grid), 2 if header.form.posterior else 1
            )
            sample["latents"] = arrays[0]
            if header.form.posterior:
                sample["log_variance"] = arrays[1]
        yield sample


def _members(url: str) -> tuple[ShardHeader, dict[int, list[IndexedRecord]]]:
    """Opens the index beside a tar; returns the records of each of its members."""
    with needs_extra("dataset", {"webdataset"}):
        from webdataset.gopen import gopen

    before, dot, after = url.rpartition(".tar")
    if not dot:
        raise ShardError(f"found the URL {url!r}, expected one with .tar, to find the index beside")
    place = f"{before}.index.jsonl.gz{after}"
    try:
        with gopen(place) as stream:
            header, lines = record_lines_from(stream, place)
    except FileNotFoundError:
        raise ShardError(f"{url}: found no index, expected {place}; copy it beside") from None
    members: dict[int, list[IndexedRecord]] = {}
    for line in lines:
        record = parse_record(place, line)
        members.setdefault(record.location.member, []).append(record)
    return header, members


def parse_description(sample: Sample) -> Sample:
    """Returns a sample of a tar with one record a member with its "json" taken apart."""
    return {**sample, "json": json.loads(sample["json"])}
