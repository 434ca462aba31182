"""Every shipped configuration trains: a few real steps, held-out figures, a checkpoint."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml

from eval.lpips import BackboneError, load_lpips
from train.config import parse_config
from train.state import list_checkpoints
from train.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "autoencoder"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def settings(name: str, photos: Path, run_dir: Path) -> dict[str, dict[str, Any]]:
    """The configuration, on six small images for four steps."""
    values: dict[str, dict[str, Any]] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if values["data"]["folders"]:
        values["data"] |= {"folders": [str(photos)], "exclude": []}
        values["run"] |= {"validation_folder": str(photos), "validation_names": None}
    if name == "kl-f8d4-sd":  # its 84M parameters take a minute; the blocks are the same
        values["model"] |= {"block_out_channels": [32, 32, 64, 64]}
        values["data"] |= {"crop_size": 64}
    if values["loss"]["perceptual_weight"]:
        values["loss"] |= {"perceptual_start": 0, "perceptual_ramp": 0}
        try:
            load_lpips("squeeze")
        except BackboneError:
            values["loss"] |= {"perceptual_weight": 0.0}
    if values["adversarial"]["disc_weight"]:
        values["adversarial"] |= {"disc_start": 4, "disc_warmup": 2}
    if values["rate"]["rate_weight"]:
        values["rate"] |= {"rate_start": 4, "rate_warmup": 2, "rate_ramp": 0}
    values["run"] |= {
        "output_dir": str(run_dir),
        "batch_size": 2,
        "max_images": 8,
        "log_every": 1,
        "validation_every": 4,
        "validation_images": 2,
    }
    return values


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, labelled_photos: Path, tmp_path: Path) -> None:
    config = parse_config(settings(name, labelled_photos, tmp_path), name)
    progress = Trainer(config).run()
    assert progress.steps == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss/total" in line]
    held_out = [line for line in lines if "val/psnr" in line]
    assert [line["images"] for line in steps] == [2, 4, 6, 8]
    assert [line["images"] for line in held_out] == [4, 8]
    assert len(list_checkpoints(tmp_path)) == 1
    assert (tmp_path / "best").is_dir()
    assert list((tmp_path / "pictures").glob("*.png"))


@pytest.fixture(scope="module")
def labelled_photos(tmp_path_factory: pytest.TempPathFactory, pixels: Any) -> Path:
    """Six images in two folders, which are their classes."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(6):
        place = folder / ("hat" if number % 2 else "shoes")
        place.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels(96 + 8 * number, 128, number)).save(place / f"{number}.png")
    return folder
