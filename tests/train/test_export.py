"""A run becomes a codec that compresses, and fine-tuning starts from one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from codec import Codec, LatentAutoencoder
from codec.checkpoint import read_info
from train.cli import app
from train.config import TrainConfig
from train.export import ExportError, default_step, export_run
from train.statistics import StreamingStatistics
from train.trainer import Trainer


@pytest.fixture
def run_dir(make_config: Callable[..., TrainConfig], photos: Path) -> Path:
    config = make_config(
        model={"posterior_std": 0.01},
        run={"validation_folder": str(photos), "validation_images": 2},
    )
    Trainer(config).run()
    return Path(config.run.output_dir)


def test_a_run_becomes_a_codec(
    run_dir: Path, tmp_path: Path, photos: Path, make_config: Callable[..., TrainConfig]
) -> None:
    output = tmp_path / "mine"
    result = CliRunner().invoke(app, ["export", str(run_dir), "-o", str(output), "--step", "0.02"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == {
        "README.md",
        "codec.json",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "entropy.safetensors",
    }
    info = read_info(output)
    info.verify()
    assert info.quality_50_step == 0.02
    card = (output / "README.md").read_text()
    assert "6 images" in card
    assert "| psnr |" in card
    assert str(photos.parent) not in card  # a card is for others: no paths of this machine

    codec = Codec.from_pretrained(output, dtype="float32")
    image = codec.decompress(codec.compress(photos / "image0.png"))
    assert image.size == (64, 48)
    latents = torch.cat([codec.encode(path).flatten(2) for path in sorted(photos.iterdir())], dim=2)
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    assert latents.mean().item() == pytest.approx(0, abs=0.05)

    config = make_config(
        model={"init_from": str(output)}, run={"output_dir": str(tmp_path / "tuned")}
    )
    tuned = Trainer(config)
    assert default_step(config, tuned.model) == 0.02
    started = tuned.model.state_dict()
    stored = LatentAutoencoder.from_pretrained(output, torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(started[name], stored[name]) for name in stored)


def test_nothing_is_overwritten_in_silence(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="already exists"):
        export_run(run_dir, tmp_path / "there", licence="CC0-1.0")
    with pytest.raises(ExportError, match="found no complete run"):
        export_run(tmp_path / "there", tmp_path / "new", licence="CC0-1.0")


def test_statistics_stream() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(3, 5, n)) * [[[1]], [[2]], [[5]]] + 1 for n in (4, 9, 1)]
    streaming = StreamingStatistics(3)
    for image in images:
        streaming.update(image)
    found = streaming.finish()
    together = np.concatenate([image.reshape(3, -1) for image in images], axis=1)
    assert found.mean == pytest.approx(together.mean(axis=1))
    assert found.std == pytest.approx(together.std(axis=1))
    assert found.scaling_factor == pytest.approx(1 / together.std())
    assert found.shift_factor == pytest.approx(together.mean())
    assert found.count == 70
