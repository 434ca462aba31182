"""Jobs in several processes, as accelerate and torchrun start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from codec.dataset import running
from codec.dataset.launch import Group, join_group
from codec.errors import LatentCodecError
from tests.codec.dataset.jobs import digests, make_dataset, run_serial, settings_of, write_images


def test_a_process_alone_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_group() as group:
        assert group == Group(0, 1, 0, 1)
        assert group.first(lambda: 3) == 3
        assert group.everyone(lambda: 4) == [4]


def test_half_a_launchers_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LatentCodecError, match="MASTER_ADDR"), join_group():
        pass


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def launch(count: int, *words: str | Path) -> list[tuple[int, str, str]]:
    """Runs a command in several processes; returns exit code, stdout and stderr of each."""
    common = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "codec", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    ends = [process.communicate() for process in started]
    return [(one.returncode, *end) for one, end in zip(started, ends, strict=True)]


@pytest.mark.slow
def test_processes_share_the_units(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "images", 20, broken=(4,))
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_local", run_serial)
        make_dataset(source, tmp_path / "expected", settings_of(model_dir, shard_images=3))
    words = ["dataset", source, "-o", tmp_path / "d", "--model", model_dir, "--device", "cpu"]
    words += ["--dtype", "fp32", "--size", "32", "--shard-images", "3", "--batch-size", "4"]
    ends = launch(3, *words, "--workers", "1")
    assert [code for code, _, _ in ends] == [1, 1, 1], ends
    assert digests(tmp_path / "d") == digests(tmp_path / "expected")
    assert "1 images gave no latents" in ends[0][2]
    assert [bool(out) for _, out, _ in ends] == [True, False, False], "one of them speaks"

    # A refusal reaches all of them, and the reason is said once.
    ends = launch(2, *words, "--flip")
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert "--flip was off and is now on" in ends[0][2]
    assert "process 0: " in ends[1][2]
