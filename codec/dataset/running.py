"""A dataset job from beginning to end: plan, units, manifest; and again after an interruption."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codec.console import print_warning
from codec.dataset.engines import Engine, Running
from codec.dataset.items import Source
from codec.dataset.job import (
    JobError,
    JobSettings,
    describe_job,
    manifest_job,
    plan_of,
    read_job,
    refuse_changes,
    write_job,
)
from codec.dataset.launch import Group, join_group
from codec.dataset.local import available_cores, run_local
from codec.dataset.lock import LOCK_FILE, lock_dataset
from codec.dataset.pieces import Outcome, Work
from codec.dataset.plan import (
    PlanSummary,
    SourceChangedError,
    compare_source,
    make_plan,
    read_summary,
    write_plan,
)
from codec.dataset.profile import Profile, StageTimes
from codec.dataset.progress import Progress
from codec.dataset.units import UnitWriter, WriterThread, iter_pieces
from codec.errors import LatentCodecError
from codec.shards.index import read_header
from codec.shards.layout import (
    ERRORS_FILE,
    JOB_FILE,
    JOB_FOLDER,
    MANIFEST_FILE,
    committed_shards,
    index_name,
    remove_leftovers,
)
from codec.shards.manifest import Manifest, finish_dataset
from codec.shards.records import ItemError

_SHOWN_RETRIES = 5  # keys of images that were encoded again, before they are only counted


class TooManyErrors(LatentCodecError):  # noqa: N818 # what --max-errors is for
    """The job stopped because more images failed than the user allows."""


class FullDiskError(LatentCodecError):
    """The disk does not take more; what is committed stays."""


@dataclass(slots=True)
class Report:
    """What a run has done.

    Attributes:
        manifest: Of the finished dataset.
        was_finished: Whether there was nothing to do.
        num_retried: Images that were encoded again in float32.
        batch_limit: What batches were cut to because memory ran out; None if it did not.
        profile: Where the time went; None where nothing was done.
    """

    manifest: Manifest
    was_finished: bool = False
    num_retried: int = 0
    batch_limit: int | None = None
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """A job that is ready to be worked on."""

    job: dict[str, Any]
    plan: PlanSummary
    units: tuple[int, ...]
    num_errors: int
    is_finished: bool = False


@dataclass(slots=True)
class _Part:
    """What one process has done."""

    retried: list[str] = field(default_factory=list)
    num_retried: int = 0
    batch_limit: int | None = None
    num_images: int = 0
    num_records: int = 0
    wall_seconds: float = 0.0
    times: StageTimes = field(default_factory=StageTimes)

    def take(self, outcome: Outcome) -> None:
        self.num_retried += len(outcome.retried)
        self.retried += outcome.retried[: _SHOWN_RETRIES - len(self.retried)]
        if outcome.batch_limit is not None:
            self.batch_limit = min(outcome.batch_limit, self.batch_limit or outcome.batch_limit)
        self.num_images += outcome.num_images
        self.num_records += len(outcome.records)
        self.times.add(outcome.times.seconds)


def run_job(
    open_source: Callable[[], Source], directory: Path, settings: JobSettings, running: Running
) -> Report:
    """Makes a dataset, or goes on with it.

    Args:
        open_source: Opens what to encode.
        directory: Where the dataset goes; made if missing.
        settings: What decides its content.
        running: How to run.

    Raises:
        JobError: The folder holds something else, or was begun with other settings.
        SourceChangedError: The source is not what the job began with.
        BusyError: Another job works on it.
        TooManyErrors: More images failed than allowed.
        FullDiskError: The disk is full. What is committed stays.
        OSError: The folder cannot be written to.
    """
    with join_group() as group, ExitStack() as stack, _told_when_full(directory):
        begun = group.first(lambda: _begin(stack, open_source, directory, settings, running))
        if begun.is_finished:
            return Report(Manifest.read(directory), was_finished=True)
        parts = group.everyone(lambda: _do_part(group, begun, directory, settings, running))
        manifest = group.first(lambda: _finish(directory, begun))
    return _report(manifest, parts, group)


@contextmanager
def _told_when_full(directory: Path) -> Iterator[None]:
    """Turns a full disk into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FullDiskError(
            f"{error.filename or directory}: {error.strerror}; make room and give the same command "
            "again, it goes on with what is missing"
        ) from error


def _begin(
    stack: ExitStack,
    open_source: Callable[[], Source],
    directory: Path,
    settings: JobSettings,
    running: Running,
) -> _Begun:
    """Takes the dataset, lists the source, and finds out what is left to do."""
    if directory.exists() and not directory.is_dir():
        raise JobError(f"{directory} is a file, expected a folder for the dataset")
    directory.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock_dataset(directory))
    if running.overwrite:
        _remove_dataset(directory)
    remove_leftovers(directory)
    old = read_job(directory)
    if old is None:
        _refuse_strangers(directory)
    else:
        refuse_changes(directory, old, settings)
        if old["batch_size"] != settings.batch_size:
            print_warning(
                f"the batch size was {old['batch_size']} and is now {settings.batch_size}: on a "
                "GPU, latents may differ in their last digits from those before"
            )
    job, plan = _plan(directory, open_source(), settings, old)
    if (directory / MANIFEST_FILE).is_file():
        shutil.rmtree(directory / JOB_FOLDER)
        return _Begun(job, plan, (), 0, is_finished=True)
    done = _intact_units(directory)
    units = tuple(unit for unit in range(plan.num_units) if unit not in done)
    return _Begun(job, plan, units, sum(done.values()))


def _plan(
    directory: Path, source: Source, settings: JobSettings, old: dict[str, Any] | None
) -> tuple[dict[str, Any], PlanSummary]:
    """Writes the plan and, for a new job, job.json; refuses a source that has changed."""
    for note in source.notes:
        print_warning(note)
    folder = directory / JOB_FOLDER
    endings = settings.preprocessing.key_endings()
    if old is None:
        plan = write_plan(source, folder, settings.shard_images, endings)
        job = describe_job(settings, source, plan)
        write_job(directory, job)
        return job, plan
    has_plan = read_summary(folder) is not None
    make = make_plan if has_plan else write_plan
    plan = make(source, folder, settings.shard_images, endings)
    began = plan_of(old)
    if plan.fingerprint != began.fingerprint:
        change = compare_source(began, plan, None, folder)
        shutil.rmtree(folder)
        raise SourceChangedError(
            f"the source has changed since {directory} was begun: {change}; give --overwrite to "
            "begin anew, or another folder for the output"
        )
    return old, plan


def _intact_units(directory: Path) -> dict[int, int]:
    """Returns the units that need not be done again, with how many errors each has.

    An index always has its shard, unless somebody has removed or changed it.
    """
    found = {}
    for unit in committed_shards(directory):
        path = directory / index_name(unit)
        header = read_header(path)
        shard = directory / header.file_name
        if shard.is_file() and shard.stat().st_size == header.size_bytes:
            found[unit] = header.num_errors
        else:
            print_warning(f"{shard} is not what its index says; it is written again")
            path.unlink()
    return found


def _do_part(
    group: Group, begun: _Begun, directory: Path, settings: JobSettings, running: Running
) -> _Part:
    """Does this process's share of the units."""
    units = begun.units[group.rank :: group.size]
    total = sum(_unit_images(begun.plan, unit) for unit in units)
    part, work = _Part(), settings.work
    writer = UnitWriter(directory, settings.form, settings.records_per_member)
    is_shown = running.is_shown and group.is_first
    title = "encoding" if group.size == 1 else f"encoding, process 1 of {group.size}"
    progress = Progress(total, title, is_shown, errors=begun.num_errors)
    wall, own = time.monotonic(), time.thread_time()

    def told(outcome: Outcome, errors: list[ItemError]) -> None:
        part.take(outcome)
        size = sum(3 * info.size[0] * info.size[1] for info, _ in outcome.records)
        progress.advance(outcome.num_images, size, len(errors))
        most = running.max_errors
        if most is not None and progress.errors > most:
            last = f"; the last: {errors[-1].reason}" if errors else ""
            raise TooManyErrors(
                f"{progress.errors} images failed, and --max-errors allows {most}{last}"
            )

    outcomes = _run_engine(units, directory, work, running, group)
    with progress, closing(outcomes), WriterThread(writer, told) as thread:
        for outcome in outcomes:
            thread.put(outcome)
    part.wall_seconds = time.monotonic() - wall
    part.times.add(writer.times.seconds)
    part.times.add({"coordinate": time.thread_time() - own})
    return part


def _run_engine(
    units: tuple[int, ...], directory: Path, work: Work, running: Running, group: Group
) -> Generator[Outcome]:
    """Returns the outcomes of units, in any order."""
    plan = directory / JOB_FOLDER
    if running.engine is Engine.RAY:
        from codec.dataset.ray_engine import RaySettings, run_ray

        settings = RaySettings(running.ray_address, running.workers, running.gpus_per_worker)
        return run_ray(plan, units, work, settings)
    workers = running.workers or max(1, available_cores() // group.local_size)
    return run_local(iter_pieces(plan, units, work.piece_images), work, workers)


def _finish(directory: Path, begun: _Begun) -> Manifest:
    """Writes the manifest, and removes what only an unfinished job needs."""
    job = manifest_job(begun.job)
    manifest = finish_dataset(directory, job, num_shards=begun.plan.num_units)
    shutil.rmtree(directory / JOB_FOLDER)
    return manifest


def _report(manifest: Manifest, parts: list[_Part], group: Group) -> Report:
    total = _Part()
    for part in parts:
        total.num_retried += part.num_retried
        total.retried += part.retried
        if part.batch_limit is not None:
            total.batch_limit = min(part.batch_limit, total.batch_limit or part.batch_limit)
        total.num_images += part.num_images
        total.num_records += part.num_records
        total.wall_seconds = max(total.wall_seconds, part.wall_seconds)
        total.times.add(part.times.seconds)
    if group.is_first:
        _warn(total)
    profile = Profile(
        total.times, total.wall_seconds, total.num_images, total.num_records, available_cores()
    )
    return Report(manifest, False, total.num_retried, total.batch_limit, profile)


def _warn(total: _Part) -> None:
    """Says on stderr what did not go as it was asked for."""
    if total.num_retried:
        names = ", ".join(total.retried[:_SHOWN_RETRIES])
        more = ", ..." if total.num_retried > _SHOWN_RETRIES else ""
        print_warning(
            f"{total.num_retried} images gave latents that are not finite and were encoded again "
            f"in float32: {names}{more}"
        )
    if total.batch_limit is not None:
        print_warning(
            f"memory ran out, so batches were cut to {total.batch_limit}; give --batch-size "
            f"{total.batch_limit} the next time"
        )


def _unit_images(plan: PlanSummary, unit: int) -> int:
    entries = plan.num_items + plan.num_errors
    return min(plan.shard_images, entries - unit * plan.shard_images)


def _refuse_strangers(directory: Path) -> None:
    """Refuses a folder that holds something, but no job."""
    ours = {LOCK_FILE, JOB_FOLDER}
    other = sorted(entry.name for entry in os.scandir(directory) if entry.name not in ours)
    if other:
        raise JobError(
            f"{directory} holds {other[0]!r} and no {JOB_FILE}, expected an empty folder or the "
            "dataset of an interrupted job; give another one"
        )


def _remove_dataset(directory: Path) -> None:
    """Removes what jobs write, the manifest first, so that no half of it seems finished."""
    for name in (MANIFEST_FILE, JOB_FILE, ERRORS_FILE):
        (directory / name).unlink(missing_ok=True)
    for unit in committed_shards(directory):
        (directory / index_name(unit)).unlink()
    for pattern in ("shard-*.tar", "shard-*.parquet"):
        for path in directory.glob(pattern):
            path.unlink()
    shutil.rmtree(directory / JOB_FOLDER, ignore_errors=True)
