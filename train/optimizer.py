"""The optimizer: AdamW, or torch's Muon for the convolution kernels and AdamW for the rest.

Muon (Jordan et al. 2024; scaling of arXiv:2502.16982) orthogonalises the momentum of a matrix. A
kernel (O, I, k, k) is the matrix (O, I * k * k). torch's Muon takes matrices only, so it is given
views that share the kernels' memory.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from codec.errors import LatentCodecError
from train.sections import OptimizerConfig

MIN_MATRIX_SIDE = 32
"""Kernels with fewer input or output channels (stem and head) stay with AdamW."""


class OptimizerError(LatentCodecError):
    """The optimizer does not fit the network."""


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that the configuration asks for, over the parameters that require gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay
        )
    return KernelMuon(parameters, config)


def matrix_view(kernel: Tensor) -> Tensor:
    """A kernel (O, I, k, k) as a matrix (O, k * k * I) that shares its memory (channels_last)."""
    return kernel.permute(0, 2, 3, 1).view(kernel.shape[0], -1)


class KernelMuon(torch.optim.Optimizer):
    """Muon over convolution kernels and AdamW over everything else, as one optimizer.

    The kernels' memory is made channels_last at construction.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        parameters = list(parameters)
        kernels = [
            p for p in parameters if p.ndim == 4 and min(p.shape[0], p.shape[1]) >= MIN_MATRIX_SIDE
        ]
        if not kernels:
            raise OptimizerError(
                f"found optimizer.name muon and no kernel of at least {MIN_MATRIX_SIDE} channels "
                "on both sides, expected wider model.block_out_channels, or optimizer.name adamw"
            )
        chosen = {id(p) for p in kernels}
        rest = [p for p in parameters if id(p) not in chosen]
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        self.kernels = kernels
        self.matrices = [nn.Parameter(matrix_view(kernel.data)) for kernel in kernels]
        defaults: dict[str, Any] = {"lr": config.learning_rate}
        super().__init__([{"params": kernels}, {"params": rest}], defaults)
        self.muon = torch.optim.Muon(
            self.matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(
            rest,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients."""
        assert closure is None
        for group, inner in zip(self.param_groups, (self.muon, self.adamw), strict=True):
            inner.param_groups[0]["lr"] = group["lr"]
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            gradient = kernel.grad
            matrix.grad = None if gradient is None else gradient.permute(0, 2, 3, 1).flatten(1)
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both inner optimizers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
