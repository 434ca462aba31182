"""Which input goes to which output file: settled, and checked for clashes, before any work."""

import glob
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from codec import images
from codec.console import print_error
from codec.images import ImageError
from codec.outputs import refuse_existing

STREAM = "-"  # stdin as an input, stdout as an output


@dataclass(frozen=True, slots=True)
class Job:
    """One file to make: a path or `STREAM` on each side."""

    source: str
    target: str

    def __str__(self) -> str:
        return "stdin" if self.source == STREAM else self.source


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command has to do, and how many of its inputs were refused, with a line on stderr."""

    jobs: tuple[Job, ...]
    num_refused: int


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    *,
    suffixes: Collection[str],
    new_suffix: str,
    force: bool,
) -> Plan:
    """Assigns an output to every file that `inputs` stand for.

    `output` is a folder when it is one, ends with a separator, or when there are several inputs, a
    folder or a pattern; below it folder trees keep their structure. Otherwise it is the file.

    Args:
        inputs: Files, folders, patterns, or `STREAM`.
        output: A file, a folder, or `STREAM`.
        suffixes: Lower-case endings of the files that are wanted from folders.
        new_suffix: Ending of the files made in a folder, with its dot.
        force: Overwrite existing outputs instead of refusing them one by one.

    Raises:
        typer.BadParameter: The inputs and the output do not go together.
    """
    to_folder = (
        len(inputs) > 1
        or any(_is_many(given) for given in inputs)
        or output.endswith(("/", os.sep))
        or os.path.isdir(output)
    )
    named, num_missing = _collect(inputs, suffixes)
    if output == STREAM:
        if len(inputs) > 1 or len(named) > 1:
            raise _wrong(f"stdout takes one file, but {max(len(inputs), len(named))} were given")
        jobs = [Job(source, STREAM) for source in named]
    elif not to_folder:
        jobs = [Job(source, output) for source in named]
    else:
        if STREAM in named:
            raise _wrong("a file from stdin has no name for a folder; give -o FILE, and it alone")
        if os.path.lexists(output) and not os.path.isdir(output):
            raise _wrong(f"{output} is a file, expected a folder for the outputs of several inputs")
        jobs = [
            Job(source, str(Path(output) / relative.with_suffix(new_suffix)))
            for source, relative in named.items()
        ]
    _refuse_clashes(jobs)
    ready = [job for job in jobs if force or not _is_refused(job)]
    return Plan(tuple(ready), num_missing + len(jobs) - len(ready))


def _collect(inputs: Sequence[str], suffixes: Collection[str]) -> tuple[dict[str, Path], int]:
    """Returns each source with its place below an output folder; reports inputs without files."""
    named: dict[str, Path] = {}
    num_missing = 0
    for given in inputs:
        if given == STREAM:
            named[given] = Path()
            continue
        try:
            found = images.find([given], suffixes)
        except ImageError as error:
            print_error(error)
            num_missing += 1
            continue
        root = _root(given)
        for path in found:
            named.setdefault(str(path), path.relative_to(root))
    return named, num_missing


def _is_pattern(given: str) -> bool:
    return glob.has_magic(given) and not os.path.lexists(given)


def _is_many(given: str) -> bool:
    return os.path.isdir(given) or _is_pattern(given)


def _root(given: str) -> Path:
    """Returns the folder whose structure the outputs keep: for a pattern its part without `*`."""
    path = Path(given)
    if not _is_pattern(given):
        return path if path.is_dir() else path.parent
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    sources = {os.path.realpath(job.source): job for job in jobs if job.source != STREAM}
    targets: dict[str, Job] = {}
    for job in jobs:
        if job.target == STREAM:
            continue
        place = os.path.normcase(os.path.realpath(job.target))
        if place in targets:
            first = targets[place].source
            raise _wrong(f"{first} and {job.source} would both become {job.target}; rename one")
        if place in sources:
            raise _wrong(f"{job.target} is an input itself, expected another place for the output")
        targets[place] = job


def _is_refused(job: Job) -> bool:
    if job.target == STREAM:
        return False
    try:
        refuse_existing(job.target, force=False)
    except FileExistsError as error:
        print_error(error)
        return True
    return False


def _wrong(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint="'-o'")
