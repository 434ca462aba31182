"""What the checkpoints of an autoencoder's run hold, and where a run writes and goes on.

Weights, codebooks, their average, discriminators, context model, optimizers, controllers; see
`train.saved_state`.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from codec.errors import LatentCodecError
from train.objective import Objective
from train.saved_state import SavedState
from train.sections import TrainConfig
from train.state import ResumeError, best_checkpoint, latest_good, list_checkpoints


class OutputDirError(LatentCodecError):
    """A run cannot write where it should."""


class LearnedScale:
    """The reconstruction's learned log-variance as a part with a state.

    Args:
        logvar: a parameter of one number.
    """

    def __init__(self, logvar: nn.Parameter) -> None:
        self.logvar = logvar

    def state_dict(self) -> dict[str, float]:
        """Its value."""
        return {"value": float(self.logvar.detach())}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from `state_dict()`."""
        self.logvar.fill_(state["value"])


def make_state(
    config: TrainConfig,
    run_dir: Path,
    model: Any,
    ema: EMAModel,
    objective: Objective,
    parts: Mapping[str, Any],
) -> SavedState:
    """What the checkpoints of a run hold.

    Args:
        config: the run's configuration.
        run_dir: where checkpoints are.
        model: the codec's network.
        ema: average of its parameters.
        objective: with discriminators, context model and controllers.
        parts: what else has a state_dict, by name; None is left out.
    """
    logvar = None if objective.logvar is None else LearnedScale(objective.logvar)
    named = {
        **parts,
        "adversary": objective.adversary,
        "total_correlation": objective.total_correlation,
        "rate": objective.rate,
        "controller": objective.controller,
        "logvar": logvar,
    }
    limit = config.run.checkpoints_total_limit
    return SavedState(run_dir, model, ema, named, total_limit=limit, best=best_metric(config))


def best_metric(config: TrainConfig) -> tuple[str, int]:
    """The figure that the best checkpoint has, and 1 if more is better, else -1."""
    metric, loss = config.run.best_metric, config.loss
    if metric == "lpips" or (metric == "auto" and loss.perceptual_weight > 0):
        return f"val/lpips_{loss.perceptual_net}", -1
    return "val/psnr", 1


def check_output_dir(run_dir: Path) -> None:
    """See that a run's folder can be made and written to; leaves nothing behind.

    Raises:
        OutputDirError: it cannot.
    """
    places = (run_dir.absolute(), *run_dir.absolute().parents)
    nearest = next(place for place in places if os.path.lexists(place))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".latent-codec-", dir=nearest))
    except OSError as error:
        raise OutputDirError(
            f"found run.output_dir {run_dir} unusable ({nearest}: {error.strerror}), expected a "
            "folder that can be made and written to: choose another run.output_dir"
        ) from error


def find_checkpoint(run_dir: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from; refuses to start over silently, and to resume nothing."""
    checkpoints = list_checkpoints(run_dir)
    if checkpoints and not resume:
        raise ResumeError(
            f"{run_dir} already holds {checkpoints[-1].name}: add --resume to continue it, or "
            "choose another run.output_dir"
        )
    if not resume and best_checkpoint(run_dir) is not None:
        raise ResumeError(
            f"{run_dir} already holds the best weights of another run, and no checkpoint to resume "
            "from: choose another run.output_dir, or move that folder away"
        )
    if resume and not checkpoints:
        raise ResumeError(f"found no complete checkpoint in {run_dir}: start without --resume")
    newest = latest_good(run_dir) if resume else None
    if resume and newest is None:
        raise ResumeError(
            f"found damage in each of the {len(checkpoints)} checkpoints in {run_dir}: choose "
            "another run.output_dir and start without --resume"
        )
    return newest
