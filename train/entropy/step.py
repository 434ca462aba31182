"""One optimizer step of an entropy model: the mean bits of a symbol. Everything is float32."""

from torch import Tensor

from train.entropy.index_crops import IndexBatch
from train.entropy.latents import LatentBatch
from train.single_loss import SingleLossStepper

Batch = LatentBatch | IndexBatch  # what a model takes, and how many symbols that are


class EntropyStepper(SingleLossStepper):
    """Makes optimizer steps of a model that gives the bits (B,) of a batch."""

    NAME = "loss/bits_per_symbol"

    def loss(self, batch: Batch) -> Tensor:
        """Bits of a symbol."""
        bits: Tensor = self.wrapped(*(part.to(self.accelerator.device) for part in batch))
        return bits.sum() / batch.num_symbols
