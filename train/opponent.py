"""A network that learns against the codec: what every discriminator has in common.

It has its own optimizer and, under fp16, its own gradient scaler: Accelerate's is updated after
each optimizer's step, so a second optimizer would meet another scale than its gradients have.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Opponent:
    """A network with its wrapper, optimizer and state.

    Args:
        build: makes the network; called with random numbers of its own.
        accelerator: of the run.
        seed: of the initial values.
        learning_rate: of Adam.
        betas: of Adam.

    Attributes:
        network: the plain network; under mixed precision it computes as Accelerate tells it.
        wrapped: the same network; a backward pass through it averages gradients over processes.
        steps: optimizer steps so far.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        accelerator: Accelerator,
        *,
        seed: int,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(seed)
            self.network = build()
        self.accelerator = accelerator
        self.network.to(accelerator.device, memory_format=torch.channels_last)
        self.wrapped: nn.Module = accelerator.prepare_model(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=betas)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=accelerator.scaler is not None
        )
        self.steps = 0

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """What is computed inside passes gradients on to its inputs, none to the network."""
        self.network.requires_grad_(False)
        try:
            yield
        finally:
            self.network.requires_grad_(True)

    @contextmanager
    def learning(self, synchronise: bool) -> Iterator[None]:
        """Around forward and backward of one batch; processes exchange gradients in the last."""
        with nullcontext() if synchronise else self.accelerator.no_sync(self.wrapped):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, learning_rate: float) -> None:
        """Move once along the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, gradient scaler and steps."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]
