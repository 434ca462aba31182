"""Two real processes (torchrun, gloo) against one process with the doubled batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval.lpips import BackboneError, load_lpips
from train.sections import TrainConfig
from train.state import list_checkpoints
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
STEPS = 20


def launch(config: TrainConfig, folder: Path, processes: int) -> Path:
    """Train with torchrun; returns the run's folder."""
    path = folder / "config.yaml"
    folder.mkdir()
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "train.cli", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(config.run.output_dir)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run_dir)[-1] / "model.safetensors")


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def compare(make_config: MakeConfig, tmp_path: Path, **sections: dict[str, Any]) -> float:
    """Largest difference of a parameter after STEPS steps; also that the runs went anywhere.

    At a low rate: L1, ReLU and max pooling have corners, at which a rounding error of 1e-8 becomes
    one of 1e-2 in the gradient; twenty steps of 1e-4 come to none of them.
    """
    sections = {"optimizer": {"warmup_images": 0, "learning_rate": 1e-4}, **sections}
    # Saves and held-out figures come often: whatever processes must do together, they do here.
    run = {
        "max_images": 4 * STEPS,
        "log_every": 1,
        "checkpoint_minutes": 1e-3,
        "validation_folder": make_config().data.folders[0],
        "validation_every": 24,
        "validation_images": 3,
    }
    one = make_config(**sections, run={**run, "batch_size": 4, "output_dir": str(tmp_path / "one")})
    two = make_config(**sections, run={**run, "batch_size": 2, "output_dir": str(tmp_path / "two")})
    launch(two, tmp_path / "config", 2)
    versions = json.loads((tmp_path / "two" / "versions.json").read_text())
    assert versions["processes"] == 2
    trainer = Trainer(one)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.run().steps == STEPS
    found = weights(tmp_path / "one")
    assert largest_difference(start, found) > 1e-3
    return largest_difference(found, weights(tmp_path / "two"))


def test_two_processes_equal_the_doubled_batch(make_config: MakeConfig, tmp_path: Path) -> None:
    loss = {"l1_weight": 1.0, "l2_weight": 1.0, "kl_weight": 1e-3, "perceptual_weight": 0.5}
    try:
        load_lpips("squeeze")
    except BackboneError as error:
        pytest.skip(f"no LPIPS backbone at hand: {error}")
    assert compare(make_config, tmp_path, loss=loss) < 1e-5


@pytest.mark.slow
def test_two_processes_with_a_discriminator(make_config: MakeConfig, tmp_path: Path) -> None:
    """To 1e-4: hinge and leaky ReLU have corners too, and the adaptive weight is a quotient."""
    adversarial = {
        "disc_weight": 0.5,
        "disc_start": 8,
        "disc_warmup": 8,
        "disc_adaptive": True,
        "disc_layers": 1,
        "disc_channels": 8,
        "r1_weight": 1.0,
        "r1_every": 2,
    }
    assert compare(make_config, tmp_path, adversarial=adversarial) < 1e-4


@pytest.mark.slow
def test_two_processes_with_a_codebook(make_config: MakeConfig, tmp_path: Path) -> None:
    """To 1e-4: codes are chosen by comparison, where a rounding error can choose another."""
    model = {"bottleneck": "vq", "codebook_size": 16}
    assert compare(make_config, tmp_path, model=model, loss={"kl_weight": 0.0}) < 1e-4
