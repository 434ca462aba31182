"""Real processes that are killed or told to stop, resumed, and compared bit for bit.

Float32, complete state: weights, average, optimizers, discriminator, codebook. The pool has an odd
number of images and a step takes two, so no step ends an epoch: wherever a run is interrupted, it
is in the middle of one.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import yaml

from codec.codebooks import VectorQuantizer
from train.sections import TrainConfig
from train.state import PARTIAL, latest_good, list_checkpoints, load_checkpoint, read_progress
from train.trainer import Trainer

State = dict[str, torch.Tensor]
MakeConfig = Callable[..., TrainConfig]
POOL, IMAGES = 31, 60
SAVED, SEEN = 12, 36
"""Images that a killed run has saved at least, and seen at most, but for those of the last moment.

Codes die before that and after it.
"""
PATIENCE = 240.0
"""Seconds, on a machine with much else to do."""
ADVERSARY = {
    "disc_weight": 0.5,
    "disc_loss": "hinge",
    "disc_start": 8,
    "disc_warmup": 4,
    "disc_adaptive": True,
    "disc_layers": 1,
    "disc_channels": 8,
    "r1_weight": 1.0,
    "r1_every": 3,
}
CODEBOOK: dict[str, dict[str, Any]] = {
    "model": {"bottleneck": "vq", "codebook_size": 32},
    "codebook": {"decay": 0.8, "restart_below": 0.5},
    "loss": {"kl_weight": 0.0},
}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "adversary": {"adversarial": ADVERSARY},
    "codebook": CODEBOOK,
}
# Imports once for all runs; each is then forked into a process group of its own.
NURSERY = """
import json, os, runpy, sys
import train.trainer
for line in sys.stdin:
    words, output = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        sys.exit()
    print(child, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(output + ".exit", "w") as stream:
        stream.write(f"{code}\\n")
"""
# torchrun forks its processes too, without a new import and into its own process group.
TORCHRUN = (
    *("torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    *("--run_path", "--start_method=fork"),
)
TRAIN = """
import os, sys
from train.config import load_config
from train.trainer import Trainer
os.write(1, "; rank {RANK} of {WORLD_SIZE};".format(**os.environ).encode())
Trainer(load_config(sys.argv[1]), resume="--resume" in sys.argv).run()
"""


class Run:
    """A process group that trains.

    Args:
        group: its number.
        output: file of what it says.
    """

    def __init__(self, group: int, output: Path) -> None:
        self.group = group
        self.output = output

    @property
    def said(self) -> str:
        return self.output.read_text()

    def has_ended(self) -> bool:
        exit_file = Path(f"{self.output}.exit")
        return exit_file.is_file() and exit_file.read_text().endswith("\n")

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Look until something is so; an error if the run ends before."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert not self.has_ended(), self.said[-3000:]
            assert time.monotonic() < deadline, self.said[-3000:]
            time.sleep(0.0005)

    def kill(self) -> None:
        os.killpg(self.group, signal.SIGKILL)

    def exit_code(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while not self.has_ended():
            assert time.monotonic() < deadline, self.said[-3000:]
            time.sleep(0.005)
        return int(Path(f"{self.output}.exit").read_text())


Start = Callable[..., Run]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -m WORDS` in a process group of its own."""
    folder, runs = tmp_path_factory.mktemp("output"), []
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None

    def launch(*words: object) -> Run:
        output = folder / f"run-{len(runs)}"
        print(json.dumps([[*map(str, words)], str(output)]), file=nursery.stdin, flush=True)
        runs.append(Run(int(nursery.stdout.readline()), output))
        runs[-1].wait_for(output.is_file)
        return runs[-1]

    with nursery:
        yield launch
        for run in runs:
            if not run.has_ended():
                run.kill()
        nursery.kill()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for number in range(POOL):
        PIL.Image.fromarray(pixels(40 + number, 48, number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def make(make_config_in: MakeConfig, pool: Path) -> MakeConfig:
    """Makes the configuration of a run in a folder: thirty steps, checkpoints now and then."""

    def make(folder: Path, kind: dict[str, dict[str, Any]], **changes: Any) -> TrainConfig:
        run = {"max_images": IMAGES, "checkpoint_minutes": 0.1 / 60, "trackers": []}
        data = {"folders": [str(pool)], "crop_size": 32, "num_workers": changes.pop("workers", 0)}
        return make_config_in(folder, **kind, data=data, run={**run, **changes})

    return make


@pytest.fixture(scope="module")
def uninterrupted(
    make: MakeConfig, states: Callable[[Path], State], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], State]:
    """The state that an uninterrupted run of a kind ends in; made once."""
    found: dict[str, State] = {}

    def find(kind: str) -> State:
        if kind not in found:
            config = make(tmp_path_factory.mktemp("whole"), KINDS[kind])
            Trainer(config).run()
            found[kind] = states(Path(config.run.output_dir))
        return found[kind]

    return find


def write(config: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def logged(run_dir: Path) -> int:
    """Images at the last line of the log; every step writes one."""
    log = run_dir / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    found = [re.match(r'{"images": (\d+), ', line) for line in lines]
    return max((int(match[1]) for match in found if match), default=0)


def half_written(run_dir: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a run was killed: name and moment."""
    found = set()
    for path in run_dir.glob(f"*{PARTIAL}"):
        with suppress(FileNotFoundError):  # it was renamed just now
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def saved(run_dir: Path) -> int:
    """Images at the newest checkpoint."""
    checkpoints = list_checkpoints(run_dir)
    return read_progress(checkpoints[-1]).images_seen if checkpoints else 0


def kill_somewhere(run: Run, run_dir: Path) -> None:
    """SIGKILL at an arbitrary place in the middle of an epoch."""
    place = random.Random(run_dir.parent.name).randrange(SAVED, SEEN, 2)
    run.wait_for(lambda: logged(run_dir) >= place and saved(run_dir) >= SAVED)
    run.kill()
    assert run.exit_code() == -signal.SIGKILL
    assert saved(run_dir) < IMAGES
    assert saved(run_dir) % POOL != 0


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_the_middle_of_an_epoch(
    kind: str,
    start: Start,
    make: MakeConfig,
    uninterrupted: Callable[[str], State],
    states: Callable[[Path], State],
    assert_same: Callable[[State, State], None],
    tmp_path: Path,
) -> None:
    config, run_dir = make(tmp_path, KINDS[kind]), tmp_path / "run"
    kill_somewhere(start("train.cli", write(config, tmp_path / "config.yaml")), run_dir)
    Trainer(config, resume=True).run()
    assert_same(states(run_dir), uninterrupted(kind))


def test_the_codebook_of_these_runs_has_dead_codes(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts, replace = [], VectorQuantizer._replace

    def counting(self: VectorQuantizer, dead: torch.Tensor, vectors: torch.Tensor) -> None:
        restarts.append(int(dead.sum()))
        replace(self, dead, vectors)

    monkeypatch.setattr(VectorQuantizer, "_replace", counting)
    Trainer(make(tmp_path, CODEBOOK)).run()
    of_steps = restarts[1:]  # the first is of k-means
    assert len(of_steps) == IMAGES // 2
    assert sum(of_steps[: SAVED // 2]) > 0
    assert sum(of_steps[SEEN // 2 :]) > 0


def test_two_processes_killed_in_the_middle_of_an_epoch(
    start: Start,
    make: MakeConfig,
    states: Callable[[Path], State],
    assert_same: Callable[[State, State], None],
    tmp_path: Path,
) -> None:
    def train(name: str, *options: str) -> Run:
        kind = {**CODEBOOK, "adversarial": ADVERSARY}
        config = make(tmp_path / name, kind, batch_size=1)
        return start(*TORCHRUN, script, write(config, tmp_path / f"{name}.yaml"), *options)

    script, run_dir = tmp_path / "script.py", tmp_path / "killed" / "run"
    script.write_text(TRAIN)
    runs = [train("whole")]
    assert runs[0].exit_code() == 0, runs[0].said[-3000:]
    runs.append(train("killed"))
    kill_somewhere(runs[1], run_dir)
    runs.append(train("killed", "--resume"))
    assert runs[2].exit_code() == 0, runs[2].said[-3000:]
    for run in runs:
        assert sorted(re.findall(r"rank . of .", run.said)) == ["rank 0 of 2", "rank 1 of 2"]
    assert json.loads((run_dir / "versions.json").read_text())["processes"] == 2
    assert_same(states(run_dir), states(tmp_path / "whole" / "run"))


def test_sigterm_to_the_whole_group_with_loader_processes(
    start: Start,
    make: MakeConfig,
    uninterrupted: Callable[[str], State],
    states: Callable[[Path], State],
    assert_same: Callable[[State, State], None],
    tmp_path: Path,
) -> None:
    config, run_dir = make(tmp_path, KINDS["codebook"], workers=2), tmp_path / "run"
    run = start("train.cli", write(config, tmp_path / "config.yaml"))
    run.wait_for(lambda: logged(run_dir) >= 10)
    os.killpg(run.group, signal.SIGTERM)
    assert run.exit_code() == 0, run.said[-3000:]
    assert "Traceback" not in run.said
    assert latest_good(run_dir) == list_checkpoints(run_dir)[-1]
    assert 10 <= saved(run_dir) == logged(run_dir) < IMAGES
    Trainer(make(tmp_path, KINDS["codebook"]), resume=True).run()
    assert_same(states(run_dir), uninterrupted("codebook"))


def test_killed_while_a_checkpoint_is_written(
    start: Start,
    make: MakeConfig,
    uninterrupted: Callable[[str], State],
    states: Callable[[Path], State],
    assert_same: Callable[[State, State], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Again and again, until two were caught in the middle of it; what they left stays there."""
    config, run_dir = make(tmp_path, KINDS["adversary"], checkpoint_minutes=1e-9), tmp_path / "run"
    path, options, caught = write(config, tmp_path / "config.yaml"), [], 0
    while caught < 2:
        left = half_written(run_dir)
        run = start("train.cli", path, *options)
        run.wait_for(lambda left=left: list_checkpoints(run_dir) and half_written(run_dir) - left)
        run.kill()
        assert run.exit_code() == -signal.SIGKILL
        caught += bool(half_written(run_dir) - left)
        capsys.readouterr()
        good = latest_good(run_dir)
        assert capsys.readouterr().err == ""  # nor was one passed over for damage
        assert good is not None
        assert load_checkpoint(good).progress.images_seen <= logged(run_dir) < IMAGES
        options = ["--resume"]
    Trainer(config, resume=True).run()
    assert_same(states(run_dir), uninterrupted("adversary"))
    assert not half_written(run_dir)
