"""Checkpoints survive kills, damage and rotation; what they hold comes back exactly."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from train import state
from train.state import (
    Progress,
    ResumeError,
    best_checkpoint,
    fill,
    latest_good,
    list_checkpoints,
    load_checkpoint,
    read_best,
    save_best,
    save_checkpoint,
)


def tensors(value: float) -> dict[str, dict[str, Tensor]]:
    model = {"weight": torch.full((2, 3), value), "codes": torch.full((4,), -value)}
    return {"model": model, "ema": {"weight": torch.full((2, 3), value / 2)}}


def save(run_dir: Path, images: int, total_limit: int = 9) -> Path:
    return save_checkpoint(
        run_dir, tensors(images), {}, Progress(images, images // 2, 1.5), total_limit=total_limit
    )


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # A channels-last kernel is not contiguous as it stands.
    kernel = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    weights = {"model": {"kernel": kernel, **model.state_dict()}}
    states = {"optimizer": optimizer.state_dict(), "controller": {"weight": 0.1, "on": True}}
    path = save_checkpoint(tmp_path, weights, states, Progress(8, 4, 2.5), total_limit=1)
    assert path.name == "checkpoint-000000008"
    found = load_checkpoint(path)
    assert found.progress == Progress(8, 4, 2.5)
    assert torch.equal(found.tensors["model"]["kernel"], kernel)
    assert found.states["controller"] == {"weight": 0.1, "on": True}
    momentum = found.states["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["exp_avg"])


def test_values_that_cannot_be_read_back_are_not_written(tmp_path: Path) -> None:
    states = {"controller": {"weight": Path("x")}}
    with pytest.raises(AssertionError, match=r"torch\.load"):
        save_checkpoint(tmp_path, tensors(1), states, Progress(8, 4, 1), total_limit=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_checkpoint_is_announced_and_passed_over(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, newest = save(tmp_path, 2), save(tmp_path, 4)
    assert latest_good(tmp_path) == newest
    assert capsys.readouterr().err == ""
    file = newest / ("manifest.json" if damage == "manifest" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "truncate":
        del content[-5:]
    file.unlink() if damage == "delete" else file.write_bytes(content)
    assert latest_good(tmp_path) == good
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert newest.name in error
    assert file.name in error
    (good / "manifest.json").unlink()
    assert latest_good(tmp_path) is None


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A process that is killed as its files reach the disk, before the rename."""
    save(tmp_path, 2)
    code = (
        "import os, signal, torch; from pathlib import Path; from train import state\n"
        "state._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "state.save_checkpoint(Path('.'), {'model': {'weight': torch.ones(2)}}, {},\n"
        "    state.Progress(4, 2, 1.0), total_limit=1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(state.__file__).parents[1])}
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["checkpoint-000000002", "checkpoint-000000004.partial"]
    found = latest_good(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-000000002"
    save(tmp_path, 4, total_limit=1)
    assert names(tmp_path) == ["checkpoint-000000004"]  # the half one is gone too


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for images in (2, 4, 6):
        save(tmp_path, images, total_limit=2)
    assert names(tmp_path) == ["checkpoint-000000004", "checkpoint-000000006"]


def test_rotation_never_deletes_the_only_good_one(tmp_path: Path) -> None:
    save(tmp_path, 2)
    damaged = save(tmp_path, 6)
    (damaged / "state.pt").unlink()
    save(tmp_path, 4, total_limit=1)  # resumed from 2, one is kept: not the one with most images
    assert names(tmp_path) == ["checkpoint-000000004"]
    assert latest_good(tmp_path) == tmp_path / "checkpoint-000000004"


@pytest.mark.parametrize("name", ["best", "checkpoint-000000002"])
def test_a_kill_in_the_swap_leaves_one_of_the_two(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(value: float) -> None:
        if name == "best":
            save_best(tmp_path, tensors(value), {"val/psnr": value}, Progress(2, 1, 1.0))
        else:
            progress = Progress(2, 1, 1.0)
            save_checkpoint(tmp_path, tensors(value), {}, progress, total_limit=1)

    def weight() -> float:
        path = best_checkpoint(tmp_path) if name == "best" else latest_good(tmp_path)
        assert path is not None
        return float(load_checkpoint(path).tensors["model"]["weight"][0, 0])

    write(20)
    rename = Path.rename
    seen = []

    def killed(self: Path, target: Path) -> Path:
        if self.suffix == state.PARTIAL:
            raise KeyboardInterrupt
        seen.append(weight())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(21)
    monkeypatch.undo()
    assert seen == [20]
    assert not (tmp_path / name).exists()
    assert weight() == 20
    write(22)
    assert weight() == 22
    assert names(tmp_path) == [name]


def test_best_holds_weights_and_their_figures(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    for value in (20.0, 21.0):
        figures = {"val/psnr": value, "val/rate_bpp": 0.2}
        save_best(tmp_path, tensors(value), figures, Progress(int(value), 1, 1.0))
    assert read_best(tmp_path) == {"val/psnr": 21.0, "val/rate_bpp": 0.2}
    best = best_checkpoint(tmp_path)
    assert best == tmp_path / "best"
    assert load_checkpoint(best).progress.images_seen == 21
    assert load_checkpoint(best).states == {}
    assert list_checkpoints(tmp_path) == []  # it is nothing to resume from
    json.loads((best / "manifest.json").read_text())["figures.json"]  # damage there is seen too


def test_figures_of_the_best_are_json_whatever_they_are(tmp_path: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    figures = {"val/psnr": math.nan, "val/rate_bpp": 0.2, "a": math.inf, "b": -math.inf}
    folder = save_best(tmp_path, tensors(1), figures, Progress(2, 1, 1.0))
    found = json.loads((folder / "figures.json").read_text(), parse_constant=refuse)
    assert found == {**dict.fromkeys(figures), "val/rate_bpp": 0.2}
    assert best_checkpoint(tmp_path) == folder
    assert read_best(tmp_path) == {"val/rate_bpp": 0.2}


def test_fill_copies_into_the_model_itself(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, dtype=torch.float32)
    weight = model.weight
    stored = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
    fill(model.state_dict(), stored, tmp_path)
    assert model.weight is weight
    assert torch.equal(weight.detach(), stored["weight"])


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight \(2, 4\), expected \(2, "),
        ({"weight": torch.zeros(2, 3)}, r"bias missing"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "codes": torch.zeros(1)},
            r"codes \(1,\), expected no such tensor",
        ),
    ],
)
def test_another_shape_is_refused_before_anything_is_copied(
    stored: dict[str, Tensor], found: str
) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(ResumeError, match=f"another shape.*{found}"):
        fill(model.state_dict(), stored, Path("checkpoint-2"))
    assert torch.equal(model.weight.detach(), before)
