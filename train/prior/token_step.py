"""One optimizer step of a token prior: the mean bits of a code.

Legend: B batch, T tokens of an image.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import sequence_bits
from train.meter import Meter
from train.prior.token_dataset import TokenBatch
from train.randomness import UNIT_DROPOUT, seeded
from train.single_loss import SingleLossStepper
from train.step import StepResult

DECAYING = 2
"""Least dimensions of a parameter that decays: matrices do, gains and biases do not."""


class TokenForward(nn.Module):
    """The network as training and validation call it.

    Args:
        model: transformers' GPT2LMHeadModel.
        layout: of the sequences.
    """

    def __init__(self, model: Any, layout: TokenLayout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, tokens: Tensor, class_tokens: Tensor) -> Tensor:
        """Bits (B,) of sequences (B, T) given their classes' tokens (B,), float32."""
        bits = sequence_bits(self.model, self.layout, tokens, class_tokens, torch.float32)
        return bits.sum(dim=1)


class TokenStepper(SingleLossStepper):
    """Makes optimizer steps of a `TokenForward`."""

    NAME = "loss/bits_per_symbol"

    def run(self, batches: Iterator[TokenBatch], images_seen: int, meter: Meter) -> StepResult:
        """One optimizer step; what dropout leaves out follows from the place in the run."""
        run = self.config.run
        share = run.batch_size * run.gradient_accumulation_steps
        place = images_seen + share * self.accelerator.process_index
        with seeded(run.seed, place, UNIT_DROPOUT):
            return super().run(batches, images_seen, meter)

    def loss(self, batch: TokenBatch) -> Tensor:
        """Bits of a code."""
        device = self.accelerator.device
        bits: Tensor = self.wrapped(batch.tokens.to(device), batch.class_tokens.to(device))
        return bits.sum() / batch.num_symbols


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A model's parameters for AdamW: those that decay, then those that do not."""
    parameters = list(model.parameters())
    return [
        {
            "params": [p for p in parameters if p.ndim >= DECAYING],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < DECAYING], "weight_decay": 0.0},
    ]
