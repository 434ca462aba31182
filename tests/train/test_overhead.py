"""What the loader and the bookkeeping cost of a step, by the trainer's own timing lines."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from train.config import load_config
from train.report import read_log
from train.samples.pool import ImagePool
from train.trainer import Trainer

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "autoencoder" / "kl-f8d4.yaml"
BATCH, STEPS_A_LINE = 4, 2
LIMIT = 0.1
"""Of a step's time, on a CPU."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Any]) -> Path:
    """The photographs at hand, or pictures of their size."""
    shared = Path(os.environ.get("LATENT_CODEC_SHARED", "")) / "data" / "photos"
    if "LATENT_CODEC_SHARED" in os.environ and shared.is_dir():
        return shared
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        PIL.Image.fromarray(pixels(320, 480, number)).save(folder / f"{number}.png")
    return folder


def shares(photographs: Path, run_dir: Path, lines: int) -> tuple[float, float]:
    """Overhead share and seconds of a step, in all lines of the log but the first.

    The model, crops and records are those of the recipe; each image is read and decoded anew.
    """
    settings = {
        "data.folders": f"[{photographs}]",
        "data.exclude": "[]",
        "data.cache": "none",
        "loss.perceptual_weight": "0",
        "run.output_dir": run_dir,
        "run.batch_size": BATCH,
        "run.max_images": BATCH * STEPS_A_LINE * lines,
        "run.log_every": STEPS_A_LINE,
        "run.validation_folder": "null",
        "run.validation_names": "null",
    }
    Trainer(load_config(RECIPE, [f"{name}={value}" for name, value in settings.items()])).run()
    later = [line for line in read_log(run_dir) if "time/step_seconds" in line][1:]
    assert len(later) == lines - 1
    overhead = [line["time/data_share"] + line["time/log_share"] for line in later]
    seconds = [line["time/step_seconds"] for line in later]
    return float(np.average(overhead, weights=seconds)), float(np.mean(seconds))


def test_loader_and_bookkeeping_cost_a_tenth_of_a_step_at_most(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overhead, seconds = shares(photographs, tmp_path / "run", lines=3)
    assert overhead <= LIMIT

    load = ImagePool.load

    def slow(self: ImagePool, number: int) -> Any:
        time.sleep(2 * seconds / BATCH)
        return load(self, number)

    monkeypatch.setattr(ImagePool, "load", slow)
    overhead, _ = shares(photographs, tmp_path / "slow", lines=2)
    assert overhead > LIMIT  # so the figure does see a source that is too slow
