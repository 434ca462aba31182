"""The local engine: worker processes give what one process gives, whatever happens to them."""

import shutil
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from codec.dataset import running
from codec.dataset.local import PRELOAD, Schedule, run_local
from codec.dataset.pieces import Outcome, Piece, Work
from codec.dataset.workers import Done, Pool, WorkerError
from tests.codec.dataset import deadly
from tests.codec.dataset.jobs import (
    digests,
    keys_and_errors,
    make_dataset,
    run_serial,
    settings_of,
    write_images,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("source"), 26, broken=(4,))


@pytest.fixture(scope="module")
def expected(source: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    directory = tmp_path_factory.mktemp("expected") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_local", run_serial)
        make_dataset(source, directory, settings_of(model_dir))
    return directory


@pytest.mark.parametrize(("workers", "apart"), [(1, False), (3, False), (2, True)])
def test_any_number_of_workers_gives_the_same_bytes(
    source: Path,
    expected: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    apart: bool,
) -> None:
    def engine(pieces: Iterator[Piece], work: Work, num_workers: int) -> Generator[Outcome]:
        return run_local(pieces, work, workers, apart=apart)

    monkeypatch.setattr(running, "run_local", engine)
    report = make_dataset(source, tmp_path / "d", settings_of(model_dir))
    assert digests(tmp_path / "d") == digests(expected)
    assert report.profile is not None
    assert set(report.profile.times.seconds) == {
        "start",
        "prepare",
        "encode",
        "pack",
        "write",
        "coordinate",
    }


def my_workers() -> list[psutil.Process]:
    """The processes that were forked off this test's own server."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            if child.parent() not in (None, psutil.Process()):
                found.append(child)
    return found


def kill_a_worker(number: int) -> bool:
    """Whether a process died by it: the first of `my_workers`, or the second, and so on."""
    workers = my_workers()
    with suppress(psutil.NoSuchProcess):  # it ended by an earlier kill just now
        if workers and (victim := workers[number % len(workers)]).status() != psutil.STATUS_ZOMBIE:
            victim.send_signal(signal.SIGKILL)
            return True
    return False


@pytest.mark.parametrize("apart", [False, True])
def test_killed_workers_cost_nothing(
    source: Path,
    expected: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    apart: bool,
) -> None:
    kills = 0

    def engine(pieces: Iterator[Piece], work: Work, num_workers: int) -> Generator[Outcome]:
        nonlocal kills
        for outcome in run_local(pieces, work, 2, apart=apart):
            kills += kills < 3 and kill_a_worker(kills)
            yield outcome

    monkeypatch.setattr(running, "run_local", engine)
    make_dataset(source, tmp_path / "d", settings_of(model_dir))
    assert kills == 3
    assert digests(tmp_path / "d") == digests(expected)
    _, alive = psutil.wait_procs(my_workers(), timeout=10)  # gone, or waiting for their parent
    assert alive == [], "no process is left"


def test_an_image_that_kills_its_reader_is_an_error(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "images", 9)
    for name, other in (("0002", "deadly"), ("0004", "stumble")):
        shutil.move(source / "cats" / f"{name}.png", source / "cats" / f"{name}-{other}.png")

    def engine(pieces: Iterator[Piece], work: Work, num_workers: int) -> Generator[Outcome]:
        argument = (work, False, str(tmp_path / "stumbled"))
        with Pool(2, deadly.DeadlyHands, argument, PRELOAD) as pool:
            yield from Schedule(pool, pieces, None).run()

    monkeypatch.setattr(running, "run_local", engine)
    make_dataset(source, tmp_path / "d", settings_of(model_dir))
    keys, errors = keys_and_errors(tmp_path / "d")
    assert errors == ["cats/0002-deadly.png"]
    assert len(keys) == 8
    told = (tmp_path / "d" / "errors.jsonl").read_text()
    assert "cats/0002-deadly.png ends the process that decodes it (signal 9), two times" in told


def pieces_of(count: int) -> Iterator[Piece]:
    return (Piece(number, 0, number == count - 1, ()) for number in range(count))


def test_workers_that_always_die_end_the_job() -> None:
    with Pool(2, deadly.DoomedHands, None, PRELOAD) as pool:
        outcomes = Schedule(pool, pieces_of(3), None).run()
        with pytest.raises(
            WorkerError, match=r"3 worker processes died .*\(signal 9\).* --workers"
        ):
            list(outcomes)


def test_an_error_in_a_worker_ends_the_job_and_says_where() -> None:
    with (
        pytest.raises(ValueError, match="cannot do") as error,
        Pool(1, deadly.FailingHands, None, PRELOAD) as pool,
    ):
        list(Schedule(pool, pieces_of(1), None).run())
    assert any("in a worker process" in note for note in error.value.__notes__)


def test_arrays_travel_whole() -> None:
    tasks = [np.arange(5000, dtype=np.float32).reshape(50, 100), np.zeros((0, 3), np.uint8), "text"]
    with Pool(1, deadly.EchoHands, None, PRELOAD) as pool:
        for task in tasks:
            pool.submit(task)
            (done,) = pool.wait()
            assert isinstance(done, Done)
            np.testing.assert_array_equal(done.result, task)


def test_the_engine_reads_no_further_than_it_must(source: Path, model_dir: Path) -> None:
    """One piece that takes long must not let all the others pile up behind it."""
    read: list[int] = []

    def counted() -> Iterator[Piece]:
        for number in range(1000):
            read.append(number)
            yield Piece(number, 0, number == 999, ())

    class Stuck:
        """A pool whose first task never ends, and all others at once."""

        num_idle, num_busy = 2, 0

        def __init__(self) -> None:
            self.tasks: list[Any] = []

        def submit(self, task: Any) -> None:
            self.num_idle -= 1
            self.tasks.append(task)

        def wait(self, *others: object) -> Iterator[Done]:
            for task in [task for task in self.tasks if task.number]:
                self.tasks.remove(task)
                self.num_idle += 1
                outcome = Outcome(task.number, 0, False, 0, [], [], (), None, None)  # type: ignore[arg-type]
                yield Done(task, outcome)
            if [task.number for task in self.tasks] == [0] and len(read) == before[-1]:
                raise TimeoutError  # nothing else is done until the first task ends
            before.append(len(read))

    before = [0]
    with pytest.raises(TimeoutError):
        list(Schedule(Stuck(), counted(), None).run())  # type: ignore[arg-type]
    assert len(read) < 40
