"""The plan of a job: which source images each unit of work, and so each shard, holds.

It lies in a folder of its own and is written as a stream, so its length costs disk, not memory:

    plan-000000.jsonl    the items of the 0th unit and what is known to be wrong, a line each
    plan.json            the summary, written last: with it the plan is complete

The fingerprint covers what decides the records (keys, sources, labels, captions, stamps), not where
the files lie: a source that was moved with the times of its files is the same source.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from codec.dataset.changes import what_changed
from codec.dataset.duplicates import KeyRegister
from codec.dataset.items import (
    Item,
    Source,
    SourceError,
    entry_from_line,
    entry_to_line,
    identity,
)
from codec.outputs import atomic_output
from codec.shards.records import ItemError

SUMMARY_FILE = "plan.json"
SHARD_IMAGES = 1024

_NEXT = "next"
_MOST_ENDINGS = 20  # that a summary names of the files passed over


class PlanError(SourceError):
    """A plan on disk is missing or damaged."""


class SourceChangedError(SourceError):
    """The source is not what the job began with; the message names what changed."""


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What a plan holds.

    Attributes:
        num_units: Units of work.
        num_items: Images to encode.
        num_errors: What was found wrong while listing them.
        shard_images: Entries a unit, items and errors together; the last may have fewer.
        fingerprint: SHA-256 over what decides the records.
        ignored: How many files were passed over, by their ending.
    """

    num_units: int
    num_items: int
    num_errors: int
    shard_images: int
    fingerprint: str
    ignored: dict[str, int] = field(default_factory=dict)


def make_plan(
    source: Source,
    directory: Path,
    shard_images: int = SHARD_IMAGES,
    key_endings: Sequence[str] = ("",),
    advance: Callable[[], object] = lambda: None,
) -> PlanSummary:
    """Writes the plan of a job, or on resuming checks that the source has not changed.

    The plan is written anew even where nothing changed, since the source may have been moved.

    Args:
        source: What to list.
        directory: The plan's own folder, made if missing.
        shard_images: Entries a unit.
        key_endings: What `Preprocessing.key_endings` gives: records' keys must differ too.
        advance: Called for every entry.

    Raises:
        SourceChangedError: It has, or is cut into other units.
        SourceError: It cannot be listed, or holds no image.
        OSError: The disk is full, or the folder cannot be written to.
    """
    old = read_summary(directory)
    if old is None:
        return write_plan(source, directory, shard_images, key_endings, advance)
    following = directory / _NEXT
    new = write_plan(source, following, shard_images, key_endings, advance)
    if (new.fingerprint, new.shard_images) != (old.fingerprint, old.shard_images):
        change = compare_source(old, new, directory, following)
        shutil.rmtree(following)
        raise SourceChangedError(
            f"the source has changed since this job began: {change}; give --overwrite to begin "
            "anew, or another folder for the output"
        )
    # Killed between two of these, the plan is a mixture that means the same.
    for name in [_unit_name(unit) for unit in range(new.num_units)] + [SUMMARY_FILE]:
        os.replace(following / name, directory / name)
    shutil.rmtree(following)
    return new


def write_plan(
    source: Source,
    directory: Path,
    shard_images: int = SHARD_IMAGES,
    key_endings: Sequence[str] = ("",),
    advance: Callable[[], object] = lambda: None,
) -> PlanSummary:
    """Writes a plan in place of whatever plan is there; see `make_plan`."""
    assert shard_images >= 1
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SUMMARY_FILE).unlink(missing_ok=True)
    digest, counts, num_units = hashlib.sha256(), [0, 0], 0
    first_error: ItemError | None = None
    with KeyRegister(directory / "keys.sqlite", key_endings) as register:
        entries = (_checked(entry, register) for entry in source.iter_items())
        while unit := list(islice(entries, shard_images)):
            with atomic_output(directory / _unit_name(num_units)) as stream:
                for entry in unit:
                    is_error = isinstance(entry, ItemError)
                    counts[is_error] += 1
                    if first_error is None and isinstance(entry, ItemError):
                        first_error = entry
                    digest.update(identity(entry).encode() + b"\n")
                    stream.write(entry_to_line(entry).encode() + b"\n")
                    advance()
            num_units += 1
    if not counts[0]:
        found = first_error.reason if first_error else "there is none"
        raise SourceError(f"found no image that can be encoded: {found}")
    summary = PlanSummary(
        num_units,
        counts[0],
        counts[1],
        shard_images,
        digest.hexdigest(),
        dict(source.ignored.most_common(_MOST_ENDINGS)),
    )
    with atomic_output(directory / SUMMARY_FILE) as stream:
        stream.write(json.dumps(asdict(summary), indent=1).encode())
    return summary


def read_summary(directory: Path) -> PlanSummary | None:
    """Returns the summary of the plan in a folder; None where there is no complete one.

    Raises:
        PlanError: It is damaged.
    """
    path = directory / SUMMARY_FILE
    try:
        content = json.loads(path.read_bytes())
        return PlanSummary(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def read_unit(directory: Path, unit: int) -> list[Item | ItemError]:
    """Returns the entries of one unit of work, in order.

    Raises:
        PlanError: Its file is missing or damaged.
    """
    path = directory / _unit_name(unit)
    try:
        with path.open("rb") as stream:
            return [entry_from_line(line) for line in stream]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error


def iter_plan(directory: Path) -> Iterator[Item | ItemError]:
    """Yields all entries of a complete plan, in order.

    Raises:
        PlanError: There is none, or it is damaged.
    """
    summary = read_summary(directory)
    if summary is None:
        raise PlanError(f"found no plan in {directory}: start the job again")
    for unit in range(summary.num_units):
        yield from read_unit(directory, unit)


def compare_source(
    old: PlanSummary, new: PlanSummary, old_directory: Path | None, new_directory: Path
) -> str:
    """Returns a clause that names what changed between two plans of one source.

    Args:
        old: The summary of the job's plan.
        new: That of the source as it is now.
        old_directory: Where the job's plan lies; None where it is gone, and only numbers are known.
        new_directory: Where the new plan lies.
    """
    if old.fingerprint == new.fingerprint:
        return f"units held {old.shard_images} images, now {new.shard_images}"
    if old_directory is None or read_summary(old_directory) is None:
        return (
            f"it listed {old.num_items} images and {old.num_errors} errors, now {new.num_items} "
            f"and {new.num_errors}, and not all of them are the same"
        )
    database = new_directory / "changes.sqlite"
    return what_changed(iter_plan(old_directory), iter_plan(new_directory), database)


def _checked(entry: Item | ItemError, register: KeyRegister) -> Item | ItemError:
    """The entry, or what is wrong with its key."""
    if isinstance(entry, ItemError):
        return entry
    other = register.clash(entry.key)
    if other is None:
        return entry
    reason = f"{entry.source} has the key {entry.key!r}, which an earlier image has"
    if other != entry.key:
        reason = (
            f"{entry.source} has the key {entry.key!r}, and a copy of {other!r} would be called "
            "alike"
        )
    return ItemError(entry.key, entry.source, f"{reason}: expected every key once")


def _unit_name(unit: int) -> str:
    return f"plan-{unit:06}.jsonl"


def _damaged(path: Path, error: Exception) -> PlanError:
    return PlanError(
        f"the plan {path} is missing or damaged ({error}): remove its folder, and start the job "
        "again"
    )
