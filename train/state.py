"""Checkpoints of a run: atomic, complete, rotated.

A checkpoint is a folder `checkpoint-<images seen>` that holds the trained weights and their
average as safetensors, the optimizer's state, and progress.json. It is written under a temporary
name and renamed when every file is on the disk, so a folder of that name is complete by
construction. Random numbers need no state of their own: crops and latent noise are drawn from
(seed, images seen).
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codec.errors import LatentCodecError

PREFIX = "checkpoint-"
PARTIAL = ".partial"


class ResumeError(LatentCodecError):
    """A run cannot be continued from what is there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    images_seen: int
    steps: int
    seconds: float


def save_checkpoint(
    run_dir: Path,
    model: nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    total_limit: int,
) -> Path:
    """Write a checkpoint and delete the oldest ones beyond `total_limit`."""
    final = run_dir / f"{PREFIX}{progress.images_seen:09d}"
    partial = final.with_name(final.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = [name for name, _ in model.named_parameters()]
    save_file(_plain(dict(model.named_parameters())), partial / "model.safetensors")
    averaged = dict(zip(names, ema.shadow_params, strict=True))
    save_file(_plain(averaged), partial / "ema.safetensors")
    torch.save(
        {"optimizer": optimizer.state_dict(), "ema_step": ema.optimization_step},
        partial / "optimizer.pt",
    )
    (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for path in partial.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(run_dir)
    for old in list_checkpoints(run_dir)[:-total_limit]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(
        path for path in run_dir.glob(f"{PREFIX}*") if path.is_dir() and path.suffix != PARTIAL
    )


def load_checkpoint(
    path: Path, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> Progress:
    """Put a checkpoint's state into the model, its average and the optimizer.

    Raises:
        ResumeError: the checkpoint belongs to a model of another shape.
    """
    weights = load_file(path / "model.safetensors")
    parameters = dict(model.named_parameters())
    fits = weights.keys() == parameters.keys() and all(
        weights[name].shape == parameter.shape for name, parameter in parameters.items()
    )
    if not fits:
        raise ResumeError(
            f"{path} holds a model of another shape than the configuration asks for: resume "
            "with the run's own config.yaml, or choose another run.output_dir"
        )
    averaged = load_file(path / "ema.safetensors")
    with torch.no_grad():
        for (name, parameter), shadow in zip(parameters.items(), ema.shadow_params, strict=True):
            parameter.copy_(weights[name])
            shadow.copy_(averaged[name])
    state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    ema.optimization_step = state["ema_step"]
    values = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return Progress(**values)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
