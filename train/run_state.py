"""Everything of a run that a checkpoint holds, and how it is put back.

Weights, codebooks, their average, discriminators, optimizers, controllers. Random numbers, the
sampler's place and the schedules need no state: they follow from the seed and the images seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from train.objective import Objective
from train.sections import TrainConfig
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


class RunState:
    """The parts of a run that change while it trains.

    Args:
        config: the run's configuration.
        run_dir: where checkpoints are.
        model: the codec's network.
        ema: average of its parameters.
        objective: with discriminators and controllers.
        parts: what else has a state_dict, by name; None is left out.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        model: Any,
        ema: EMAModel,
        objective: Objective,
        parts: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.model = model
        self.ema = ema
        self.logvar = objective.logvar
        named = {
            **parts,
            "adversary": objective.adversary,
            "total_correlation": objective.total_correlation,
            "controller": objective.controller,
        }
        self.parts = {name: part for name, part in named.items() if part is not None}

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, and delete the oldest beyond the limit."""
        states: dict[str, dict[str, Any]] = {
            name: part.state_dict() for name, part in self.parts.items()
        }
        states["ema"] = {"optimization_step": self.ema.optimization_step}
        if self.logvar is not None:
            states["logvar"] = {"value": float(self.logvar.detach())}
        limit = self.config.run.checkpoints_total_limit
        save_checkpoint(self.run_dir, self._tensors(), states, progress, total_limit=limit)

    def restore(self, path: Path) -> Progress:
        """Put a checkpoint's state into everything that has one.

        Raises:
            ResumeError: the checkpoint is of another model or lacks a part.
        """
        checkpoint = load_checkpoint(path)
        fill(self.model.state_dict(), checkpoint.tensors["model"], path)
        fill(self._averaged(), checkpoint.tensors["ema"], path)
        states = checkpoint.states
        wanted = self.parts.keys() | ({"logvar"} if self.logvar is not None else set())
        if missing := wanted - states.keys():
            raise ResumeError(
                f"{path} has no state of {', '.join(sorted(missing))}: resume with the run's own "
                "config.yaml, or choose another run.output_dir"
            )
        for name, part in self.parts.items():
            try:
                part.load_state_dict(states[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ResumeError(
                    f"{path} holds the state of another kind of {name} than the configuration asks "
                    "for: resume with the run's own config.yaml, or choose another run.output_dir"
                ) from error
        self.ema.optimization_step = states["ema"]["optimization_step"]
        if self.logvar is not None:
            with torch.no_grad():
                self.logvar.fill_(states["logvar"]["value"])
        return checkpoint.progress

    def is_finite(self) -> bool:
        """Whether weights and averages are; what is not must not be saved as a good state."""
        opponents = [part.network for part in self.parts.values() if hasattr(part, "network")]
        tensors = [
            *self.model.state_dict().values(),
            *self.ema.shadow_params,
            *(tensor for network in opponents for tensor in network.parameters()),
        ]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def keep_if_best(self, figures: Mapping[str, float], progress: Progress) -> None:
        """Keep the weights in `best` if their held-out figure beats that of what is there."""
        name, sign = best_metric(self.config)
        best = read_best(self.run_dir)
        if best is None or name not in best or sign * figures[name] > sign * best[name]:
            save_best(self.run_dir, self._tensors(), figures, progress)

    def _averaged(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, self.ema.shadow_params, strict=True))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """The trained weights with codebooks, and the averaged weights, by name."""
        return {"model": self.model.state_dict(), "ema": self._averaged()}


def best_metric(config: TrainConfig) -> tuple[str, int]:
    """The figure that the best checkpoint has, and 1 if more is better, else -1."""
    metric, loss = config.run.best_metric, config.loss
    if metric == "lpips" or (metric == "auto" and loss.perceptual_weight > 0):
        return f"val/lpips_{loss.perceptual_net}", -1
    return "val/psnr", 1


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
