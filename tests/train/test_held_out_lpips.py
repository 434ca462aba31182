"""LPIPS is measured on held-out images without being trained with, if a backbone is at hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from eval.lpips import load_lpips
from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
NOTICE = "warning: LPIPS of held-out images is left out: "


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the shape of squeeze's backbone; its weights are random."""
    path = tmp_path_factory.mktemp("backbone") / "squeeze.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1().features.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def no_backbone_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATENT_CODEC_LPIPS", "LATENT_CODEC_SHARED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def validated(
    make_config: MakeConfig, photos: Path, tmp_path: Path
) -> Callable[..., tuple[Trainer, list[dict[str, Any]]]]:
    """Trains for two validations; the run and their lines in the log."""

    def train(**loss: Any) -> tuple[Trainer, list[dict[str, Any]]]:
        run = {
            "validation_folder": str(photos),
            "validation_every": 4,
            "validation_images": 2,
        }
        trainer = Trainer(make_config(loss=loss, run=run))
        trainer.run()
        lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        found = [line for line in map(json.loads, lines) if "val/psnr" in line]
        assert len(found) == 2
        return trainer, found

    return train


@pytest.mark.parametrize("named_by", ["setting", "variable", "folder"])
def test_a_backbone_at_hand_is_used(
    named_by: str,
    backbone: Path,
    validated: Callable[..., tuple[Trainer, list[dict[str, Any]]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if named_by == "variable":
        monkeypatch.setenv("LATENT_CODEC_LPIPS", str(backbone))
    if named_by == "folder":
        (tmp_path / "shared" / "lpips").mkdir(parents=True)
        (tmp_path / "shared" / "lpips" / "squeezenet1_1_features.pth").symlink_to(backbone)
        monkeypatch.setenv("LATENT_CODEC_SHARED", str(tmp_path / "shared"))
    named = str(backbone) if named_by == "setting" else None
    trainer, (*_, last) = validated(perceptual_backbone=named)
    assert NOTICE not in capsys.readouterr().err
    assert trainer.objective.perceptual is None
    assert "loss/lpips" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert trainer.validation is not None
    x = trainer.validation.held_out.pixels / 127.5 - 1
    with trainer.averaged(), torch.no_grad():
        symbols = torch.round(trainer.model.encode(x).latent_dist.mean / trainer.validation.step)
        output = trainer.model.decode(symbols * trainer.validation.step).sample
        levels = torch.round((output.clamp(-1, 1) + 1) * 127.5)
        expected = load_lpips("squeeze", backbone)(levels / 127.5 - 1, x).mean()
    assert last["val/lpips_squeeze"] == pytest.approx(float(expected), rel=1e-4)
    assert json.loads((tmp_path / "run" / "best" / "figures.json").read_text()).keys() >= {
        "val/psnr",
        "val/lpips_squeeze",
    }


def test_the_result_does_not_depend_on_it(
    backbone: Path, make_config: MakeConfig, photos: Path, states: Callable[..., Any]
) -> None:
    results = []
    for named in (None, str(backbone)):
        run = {"validation_folder": str(photos), "output_dir": make_config().run.output_dir}
        run["output_dir"] += str(len(results))
        Trainer(make_config(loss={"perceptual_backbone": named}, run=run)).run()
        results.append(states(Path(run["output_dir"])))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_without_one_it_is_left_out_and_said_once(
    validated: Callable[..., tuple[Trainer, list[dict[str, Any]]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, lines = validated(perceptual_net="vgg")
    assert not any("lpips" in name for line in lines for name in line)
    assert "lpips" not in (tmp_path / "run" / "log.jsonl").read_text().lower()
    error = capsys.readouterr().err
    assert error.count(NOTICE) == 1
    assert f"{NOTICE}found no backbone file of vgg" in error


def test_a_backbone_of_another_network_does_not_stop_a_run(
    backbone: Path,
    validated: Callable[..., tuple[Trainer, list[dict[str, Any]]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENT_CODEC_LPIPS", str(backbone))
    _, lines = validated(perceptual_net="alex")
    assert not any("lpips" in name for line in lines for name in line)
    assert f"tensors in {backbone}" in capsys.readouterr().err.split(NOTICE)[1]


def test_a_run_without_validation_says_nothing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(make_config())
    assert NOTICE not in capsys.readouterr().err
