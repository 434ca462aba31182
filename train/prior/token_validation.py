"""Held-out figures of a token prior: what the codes of images cost under it, and under others.

Every process measures its share of the images; sums are merged, the same on all.
Legend: N images, T tokens of an image.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from codec.entropy.fit_indices import fit_frequencies
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_tables import Indices
from eval.latents.entropy import order0_bits
from train.entropy.frozen_codes import FrozenCodes, code_vectors
from train.prior.token_codes import TokenSet
from train.prior.token_step import TokenForward

METRIC = "val/bits_per_symbol"
"""The figure that the best weights have."""
TOGETHER = 16
NULL = "null_"
"""In front of figures without the class."""


class TokenValidation:
    """Measures bits of the codes of held-out images.

    Args:
        held_out: the images.
        num_pixels: of each.
        coders: others to compare with, by the name that their figures get.
    """

    def __init__(
        self, held_out: TokenSet, num_pixels: int, coders: Mapping[str, IndexCoder]
    ) -> None:
        self.held_out = held_out
        self.num_pixels = num_pixels
        self.coders = dict(coders)
        self._others: dict[str, float] | None = None

    @torch.no_grad()
    def measure(self, forward: TokenForward, accelerator: Accelerator) -> dict[str, float]:
        """Figures by logged name, over all images; call it on every process.

        `val/bits_per_symbol` in bits a code and `val/bpp` in bits a pixel, and with another coder's
        name in front of `bits`: `null_` is the same model without the class, `tables_` frequencies
        in the training images, `present_` the codec's own coder of files, and `order0_` the entropy
        of each image's own codes.
        """
        held_out = self.held_out
        share = range(accelerator.process_index, len(held_out.tokens), accelerator.num_processes)
        sums = {"": self._model_bits(forward, share, held_out.labels)}
        if held_out.class_names:
            nowhere = np.full_like(held_out.labels, -1)
            sums[NULL] = self._model_bits(forward, share, nowhere)
        if self._others is None:  # they never change
            self._others = self._figures(self._other_bits(share))
        return {**self._figures(sums), **self._others}

    def _model_bits(self, forward: TokenForward, share: Sequence[int], labels: np.ndarray) -> float:
        device, layout = next(forward.parameters()).device, self.held_out.layout
        bits = 0.0
        for start in range(0, len(share), TOGETHER):
            numbers = list(share[start : start + TOGETHER])
            tokens = torch.from_numpy(self.held_out.tokens[numbers].astype(np.int64))
            classes = torch.tensor([layout.class_token(int(labels[i])) for i in numbers])
            bits += float(forward(tokens.to(device), classes.to(device)).double().sum())
        return bits

    def _other_bits(self, share: Sequence[int]) -> dict[str, float]:
        images = [self.held_out.layout.to_indices(self.held_out.tokens[i]) for i in share]
        sums = {
            f"{name}_": math.fsum(coder.estimate_bits(image) for image in images)
            for name, coder in self.coders.items()
        }
        sums["order0_"] = math.fsum(order0_bits(grid[None]) for image in images for grid in image)
        return sums

    def _figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Rates over all processes, by logged name."""
        parts = gather_object([dict(sums)])
        bits = {name: math.fsum(part[name] for part in parts) for name in sums}
        num_images, length = self.held_out.tokens.shape
        figures = {
            f"val/{name}bits_per_symbol": value / (num_images * length)
            for name, value in bits.items()
        }
        if "" in bits:
            figures["val/bpp"] = bits[""] / (num_images * self.num_pixels)
        return figures


def simple_coders(frozen: FrozenCodes, images: Sequence[Indices]) -> dict[str, IndexCoder]:
    """Coders to compare with: frequencies in training images, and the codec's own if it has one."""
    coders = {"tables": fit_frequencies(images, code_vectors(frozen.codes))}
    present = frozen.present_coder()
    if isinstance(present, IndexCoder):
        coders["present"] = present
    return coders
