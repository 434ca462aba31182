"""The Ray engine: the same pieces as a Ray Data pipeline, on this machine or a cluster.

    on GPUs:  read and prepare (tasks) -> encode (a pool of actors) -> pack (tasks) -> this process
    on CPUs:  read, prepare, encode and pack (a pool of actors) -> this process

On CPUs a piece stays in one process, as in the local engine: pixels need not travel. Ray does the
work of a lost process or machine again by itself. Outcomes come back to the process that started
the job, in any order, and it alone writes: the shards are those of the local engine. Every machine
must see the source, the dataset's folder and the model under the same paths.
"""

import os
import pickle
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from codec.console import needs_extra
from codec.dataset.items import Item
from codec.dataset.local import available_cores
from codec.dataset.pieces import Outcome, Piece, Steps, Work
from codec.dataset.plan import read_summary, read_unit
from codec.errors import LatentCodecError
from codec.shards.records import ItemError

_MOST_BLOCKS = 2000  # tasks of the first stage that Ray has to keep track of
_BLOCK_BYTES = 32 * 2**20  # of pixels that move between processes together
_DATA = "data"  # the one column of all rows: a pickle


class RayEngineError(LatentCodecError):
    """Ray could not do the work; the message holds its reason."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Where and how Ray runs.

    Attributes:
        address: Of a cluster; None for one on this machine, which ends with the job.
        num_encoders: Most actors; None for what the cluster has.
        gpus_per_encoder: None for one where the model runs on GPUs.
    """

    address: str | None = None
    num_encoders: int | None = None
    gpus_per_encoder: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """How pieces are found by their number: plain data that travels to tasks."""

    plan: Path
    units: tuple[int, ...]
    shard_images: int
    piece_images: int

    @property
    def pieces_per_unit(self) -> int:
        return -(-self.shard_images // self.piece_images)

    def num_pieces(self, num_entries: int) -> int:
        """How many there are; only the last unit of a plan can have fewer than the others."""
        last = num_entries // self.shard_images  # the number of a unit that is not full
        if self.units[-1] != last:
            return len(self.units) * self.pieces_per_unit
        short = -(-(num_entries - last * self.shard_images) // self.piece_images)
        return (len(self.units) - 1) * self.pieces_per_unit + short

    def piece(self, number: int) -> Piece:
        unit = self.units[number // self.pieces_per_unit]
        entries = _read_unit(self.plan, unit)
        start = number % self.pieces_per_unit * self.piece_images
        part = tuple(islice(entries, start, start + self.piece_images))
        return Piece(number, unit, start + self.piece_images >= len(entries), part)


@lru_cache(maxsize=2)
def _read_unit(plan: Path, unit: int) -> list[Item | ItemError]:
    return read_unit(plan, unit)


def run_ray(
    plan: Path, units: tuple[int, ...], work: Work, settings: RaySettings
) -> Generator[Outcome]:
    """Makes records of units, in any order.

    Args:
        plan: The folder of the plan.
        units: Those that are left to do.
        work: What to do.
        settings: Where.

    Raises:
        MissingExtraError: Ray is not installed.
        RayEngineError: Ray gave up.
    """
    if not units:
        return
    with needs_extra("ray", ("ray",)):
        import ray
        import ray.data
        import ray.exceptions
    summary = read_summary(plan)
    assert summary is not None
    cut = Cut(plan.resolve(), units, summary.shard_images, work.piece_images)
    with _cluster(settings), _quiet_data():
        rows = _pipeline(
            cut, cut.num_pieces(summary.num_items + summary.num_errors), work, settings
        )
        try:
            for row in rows.iter_rows():
                yield pickle.loads(row[_DATA])
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RayEngineError(
                f"Ray gave up: {lines[-1].strip()}; see its logs, or give --engine local"
            ) from error


def _pipeline(cut: Cut, num_pieces: int, work: Work, settings: RaySettings) -> Any:
    """Describes the stages; nothing runs before its rows are asked for."""
    import ray
    import ray.data

    resources = ray.cluster_resources()
    numbers = ray.data.range(num_pieces, override_num_blocks=min(num_pieces, _MOST_BLOCKS))
    if work.model.device.startswith("cpu"):
        most = settings.num_encoders or max(1, int(resources.get("CPU", 1)))
        return numbers.map(
            _PieceActor, fn_constructor_args=(cut, work), concurrency=(1, most), num_cpus=1
        )
    gpus = 1.0 if settings.gpus_per_encoder is None else settings.gpus_per_encoder
    most = settings.num_encoders or max(1, int(resources.get("GPU", 0) / gpus))
    encoders = {"concurrency": (1, most), "num_gpus": gpus}
    return (
        numbers.map(_prepare, fn_args=(cut, work), num_cpus=1)
        .map(_EncoderActor, fn_constructor_args=(work,), **encoders)
        .map(_pack, fn_args=(work,), num_cpus=1)
    )


@lru_cache(maxsize=1)
def _steps(work_data: bytes) -> Steps:
    """The steps of a process, which does one task after another."""
    import torch

    torch.set_num_threads(1)
    return Steps(pickle.loads(work_data))


def _prepare(row: dict[str, Any], cut: Cut, work: Work) -> dict[str, bytes]:
    prepared = _steps(pickle.dumps(work)).prepare(cut.piece(int(row["id"])))
    return {_DATA: pickle.dumps(prepared)}


class _PieceActor:
    """A process that does whole pieces, on one thread of a CPU."""

    def __init__(self, cut: Cut, work: Work) -> None:
        self._cut = cut
        self._steps = _steps(pickle.dumps(work))
        self._steps.load(encoder=True)
        self._start = {"start": time.process_time()}

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        prepared = self._steps.prepare(self._cut.piece(int(row["id"])))
        prepared.times.add(self._start)
        self._start = {}
        outcome = self._steps.pack(self._steps.encode(prepared, time.process_time))
        return {_DATA: pickle.dumps(outcome)}


class _EncoderActor:
    """A process that has a GPU with the network."""

    def __init__(self, work: Work) -> None:
        self._steps = Steps(work)
        self._steps.load(encoder=True)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        encoded = self._steps.encode(pickle.loads(row[_DATA]), time.perf_counter)
        return {_DATA: pickle.dumps(encoded)}


def _pack(row: dict[str, Any], work: Work) -> dict[str, bytes]:
    return {_DATA: pickle.dumps(_steps(pickle.dumps(work)).pack(pickle.loads(row[_DATA])))}


@contextmanager
def _cluster(settings: RaySettings) -> Iterator[None]:
    """Starts Ray on this machine, or joins a cluster; one that runs already is left as it is."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a warning about Ray Data itself
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if settings.address:
            ray.init(address=settings.address, **quiet)
        else:
            ray.init(num_cpus=available_cores(), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = settings.address or "this machine"
        raise RayEngineError(f"Ray did not start on {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Sets how Ray Data runs, and takes it back."""
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK_BYTES,
    }
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name, value in wanted.items():
        setattr(context, name, value)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
