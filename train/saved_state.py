"""The parts of a run that change while it trains: saved in checkpoints, put back from them.

Random numbers, the sampler's place and the schedules need no state: they follow from the seed and
the images seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from train.state import (
    Progress,
    ResumeError,
    fill,
    load_checkpoint,
    read_best,
    save_best,
    save_checkpoint,
)


class SavedState:
    """A network, the average of its parameters, and whatever else has a state.

    Args:
        run_dir: where checkpoints are.
        model: the network.
        ema: average of its parameters.
        parts: what else has a state_dict, by name; None is left out.
        total_limit: checkpoints kept.
        best: the held-out figure that the best weights have, and 1 if more is better, else -1.
    """

    def __init__(
        self,
        run_dir: Path,
        model: Any,
        ema: EMAModel,
        parts: Mapping[str, Any],
        *,
        total_limit: int,
        best: tuple[str, int],
    ) -> None:
        self.run_dir = run_dir
        self.model = model
        self.ema = ema
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.total_limit = total_limit
        self.best = best

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, and delete the oldest beyond the limit."""
        states: dict[str, dict[str, Any]] = {
            name: part.state_dict() for name, part in self.parts.items()
        }
        states["ema"] = {"optimization_step": self.ema.optimization_step}
        limit = self.total_limit
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
        if missing := self.parts.keys() - states.keys():
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
        name, sign = self.best
        best = read_best(self.run_dir)
        if best is None or name not in best or sign * figures[name] > sign * best[name]:
            save_best(self.run_dir, self._tensors(), figures, progress)

    def _averaged(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, self.ema.shadow_params, strict=True))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """The trained weights with codebooks, and the averaged weights, by name."""
        return {"model": self.model.state_dict(), "ema": self._averaged()}
