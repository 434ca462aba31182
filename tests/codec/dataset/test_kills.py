"""A job that is killed at any moment, again and again, ends with the same bytes as one that is not.

Moments are picked by what the job has written, not by the clock, so that a busy machine sees the
same test as an idle one.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from codec.shards.index import read_header
from codec.shards.layout import committed_shards, index_name
from tests.codec.dataset.jobs import command, digests, keys_and_errors, write_images

BROKEN, SHARD = (7, 60), 4
SECONDS = 600.0  # until a job that does not get on has failed


def start(source: Path, directory: Path, model: Path, workers: int) -> subprocess.Popen[str]:
    words = ["dataset", source, "-o", directory, "--model", model, "--device", "cpu"]
    words += ["--size", "32", "--shard-images", str(SHARD), "--batch-size", "2"]
    # what the system's library for processes leaves of killed ones lands beside the dataset
    return command(*words, "--workers", str(workers), TMPDIR=str(directory.parent))


def finish(job: subprocess.Popen[str], directory: Path) -> None:
    """Waits for the end of a job, which has errors to tell."""
    _, told = job.communicate(timeout=SECONDS)
    assert job.returncode == 1, told
    assert "2 images gave no latents" in told, told
    assert (directory / "manifest.json").is_file(), told


def num_done(directory: Path) -> int:
    return len(list(directory.glob("*.index.jsonl.gz")))


def kill_after(job: subprocess.Popen[str], directory: Path, commits: int, delay: float) -> bool:
    """Kills a job and its processes, so much later than so many commits; False if it has ended."""
    goal, deadline = num_done(directory) + commits, time.monotonic() + SECONDS
    while job.poll() is None and num_done(directory) < goal and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    is_alive = job.poll() is None
    if is_alive:
        os.killpg(job.pid, signal.SIGKILL)
    _, told = job.communicate(timeout=SECONDS)
    assert job.returncode in (-signal.SIGKILL, 1), told
    return is_alive


def check_open_dataset(directory: Path) -> int:
    """What is committed is whole; returns how much that is."""
    shards = committed_shards(directory) if directory.exists() else []
    for shard in shards:
        header = read_header(directory / index_name(shard))
        assert (directory / header.file_name).stat().st_size == header.size_bytes
    return len(shards)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("source"), 160, broken=BROKEN)


def kill_often(
    source: Path, tmp_path: Path, model: Path, moments: list[tuple[int, float]], seed: int
) -> int:
    """Kills a job at moments, lets the last run end, and compares; returns the number of kills."""
    draw = random.Random(seed)
    directory, kills, done = tmp_path / "d", 0, 0
    for commits, delay in moments:
        job = start(source, directory, model, draw.choice([1, 2, 3]))
        kills += kill_after(job, directory, commits, delay)
        left = check_open_dataset(directory)
        assert left >= done, "a committed shard is gone"
        done = left
    finish(start(source, directory, model, 2), directory)
    finish(start(source, tmp_path / "whole", model, 1), tmp_path / "whole")
    assert digests(directory) == digests(tmp_path / "whole")
    keys, errors = keys_and_errors(directory)
    assert len(errors) == len(BROKEN)
    num_images = sum(1 for _ in source.rglob("*.png"))
    assert len(set(keys)) == len(keys) == num_images - len(BROKEN)
    return kills


@pytest.mark.slow
def test_twenty_two_kills(tmp_path: Path, model_dir: Path) -> None:
    # So many that a fast machine is not done before the last kill.
    source = write_images(tmp_path / "images", 640, broken=BROKEN)
    draw = random.Random(1)
    early = [(0, draw.uniform(0, 4)) for _ in range(6)]  # imports, plan, first pieces
    late = [(draw.choice([1, 1, 2]), draw.uniform(0, 0.05)) for _ in range(16)]
    moments = early + late
    draw.shuffle(moments)
    assert kill_often(source, tmp_path, model_dir, moments, seed=2) >= 20


def test_a_kill_between_two_shards(source: Path, tmp_path: Path, model_dir: Path) -> None:
    assert kill_often(source, tmp_path, model_dir, [(2, 0.02)], seed=0) == 1


@pytest.mark.slow
def test_no_process_survives_a_kill(source: Path, tmp_path: Path, model_dir: Path) -> None:
    """Killing the job alone, not its group, ends its workers too, and gives back the lock."""
    psutil = pytest.importorskip("psutil")
    job = start(source, tmp_path / "d", model_dir, 2)
    deadline = time.monotonic() + SECONDS
    while not num_done(tmp_path / "d") and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    _, told = job.communicate(timeout=SECONDS)
    assert workers, told
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert alive == []
    finish(start(source, tmp_path / "d", model_dir, 2), tmp_path / "d")


@pytest.mark.slow
def test_ctrl_c_ends_a_job_that_can_go_on(source: Path, tmp_path: Path, model_dir: Path) -> None:
    job = start(source, tmp_path / "d", model_dir, 2)
    deadline = time.monotonic() + SECONDS
    while not num_done(tmp_path / "d") and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)
    _, told = job.communicate(timeout=SECONDS)
    assert job.returncode == 130, told
    assert "Traceback" not in told
    left = {path.name for path in (tmp_path / "d").iterdir() if path.name.startswith(".")}
    assert left == {".job"}
    finish(start(source, tmp_path / "d", model_dir, 2), tmp_path / "d")


@pytest.mark.slow
def test_a_disk_that_is_full(source: Path, tmp_path: Path, model_dir: Path) -> None:
    """A real one: a file system in memory that is made larger for the second run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs more rights")
    try:
        job = start(source, disk / "d", model_dir, 2)
        _, told = job.communicate(timeout=SECONDS)
        assert job.returncode == 1, told
        sentence = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(sentence) == 1, told
        assert "No space left on device; make room and give the same command again" in sentence[0]
        assert check_open_dataset(disk / "d") > 0, "or the disk was full before the job began"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(start(source, disk / "d", model_dir, 2), disk / "d")
        finish(start(source, tmp_path / "whole", model_dir, 1), tmp_path / "whole")
        assert digests(disk / "d") == digests(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
