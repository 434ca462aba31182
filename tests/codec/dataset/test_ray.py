"""The Ray engine: the shards of the local one, byte for byte, also when Ray loses a process."""

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from codec.dataset import running
from codec.dataset.engines import Engine, Running
from codec.dataset.pieces import Outcome
from codec.dataset.ray_engine import Cut
from tests.codec.dataset.jobs import command, digests, make_dataset, run_serial, settings_of
from tests.codec.dataset.jobs import write_images as write

WISHES = Running(engine=Engine.RAY, workers=2, is_shown=False)


def test_pieces_are_those_of_the_local_engine(tmp_path: Path, model_dir: Path) -> None:
    """The pieces that tasks of Ray find by their number, and those that are cut one by one."""
    from codec.dataset.plan import write_plan
    from codec.dataset.sources import open_source
    from codec.dataset.units import iter_pieces

    write_plan(open_source(write(tmp_path / "images", 23)), tmp_path / "plan", 7)
    for units in [(0, 1, 2, 3), (1, 3), (0, 2), (3,)]:
        expected = list(iter_pieces(tmp_path / "plan", units, 3))
        cut = Cut(tmp_path / "plan", units, 7, 3)
        assert cut.num_pieces(23) == len(expected)
        assert [cut.piece(number) for number in range(len(expected))] == expected


@pytest.fixture
def expected(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What one process makes of forty images."""
    source = write(tmp_path / "images", 40, broken=(4,))
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_local", run_serial)
        make_dataset(source, tmp_path / "expected", settings_of(model_dir))
    return tmp_path / "expected"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray's own code
def test_a_killed_worker_costs_nothing(
    expected: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_engine = pytest.importorskip("codec.dataset.ray_engine")
    pytest.importorskip("ray")
    run, killed = ray_engine.run_ray, []

    def engine(*arguments: Any) -> Generator[Outcome]:
        for outcome in run(*arguments):
            if len(killed) < 2:
                for victim in ray_actors()[:1]:
                    killed.append(victim.pid)
                    victim.send_signal(signal.SIGKILL)
            yield outcome

    monkeypatch.setattr(ray_engine, "run_ray", engine)
    make_dataset(tmp_path / "images", tmp_path / "d", settings_of(model_dir), WISHES)
    assert len(killed) == 2
    assert digests(tmp_path / "d") == digests(expected)


def ray_actors() -> list[psutil.Process]:
    """The actors of the cluster that this process has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "_PieceActor" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
def test_the_command_gives_the_same_bytes(expected: Path, tmp_path: Path, model_dir: Path) -> None:
    """Killed in the middle, too: what Ray has not done is done by the local engine."""
    pytest.importorskip("ray")
    words = ["dataset", tmp_path / "images", "-o", tmp_path / "d", "--size", "32"]
    words += ["--shard-images", "6", "--batch-size", "4", "--model", model_dir]
    words += ["--device", "cpu", "--dtype", "fp32"]
    job = command(*words, "--engine", "ray", TMPDIR="/tmp")
    while job.poll() is None and not list((tmp_path / "d").glob("*.gz")):
        pass
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    for engine in ("local", "ray"):
        job = command(*words, "--engine", engine, TMPDIR="/tmp")
        _, told = job.communicate()
        assert job.returncode == 1, told
        assert "1 images gave no latents" in told
        assert digests(tmp_path / "d") == digests(expected)
        (tmp_path / "d" / "manifest.json").unlink()
        (tmp_path / "d" / "shard-000002.index.jsonl.gz").unlink()


def test_without_ray_the_job_says_what_to_install(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from codec.console import MissingExtraError

    monkeypatch.setitem(sys.modules, "ray", None)
    write(tmp_path / "images", 2)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-codec\[ray\]'"):
        make_dataset(tmp_path / "images", tmp_path / "d", settings_of(model_dir), WISHES)
