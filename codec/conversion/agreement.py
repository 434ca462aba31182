"""Whether two networks give the same numbers on the same random input.

Legend: B batch, C latent channels, H W pixels, f downscale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codec.conversion.errors import ConversionError

_CELLS = 8
"""Latent cells a side of the input: enough for edges, corners and a middle."""
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 8e-2}
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest differences, each relative to the largest of the values and 1.

    Attributes:
        latents: Of what the encoders make of an image.
        images: Of what the decoders make of latents.
    """

    latents: float
    images: float

    def check(self, dtype: torch.dtype, what: str) -> None:
        """Sees that the differences are those of rounding.

        Args:
            dtype: That the weights are stored in.
            what: Names the conversion in the error.

        Raises:
            ConversionError: They are larger.
        """
        tolerance = _TOLERANCES.get(dtype, _TOLERANCE)
        if not max(self.latents, self.images) <= tolerance:
            raise ConversionError(
                f"found outputs that differ by {self.latents:.2g} (latents) and {self.images:.2g} "
                f"(images) after {what}, expected at most {tolerance:g}; nothing was written"
            )


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to the largest value and 1; NaN if there is one."""
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / scale


def random_image(in_channels: int, factor: int) -> Tensor:
    """Returns the same noise in [-1, 1] every time, float32 (1, in_channels, H, W)."""
    generator = torch.Generator().manual_seed(0)
    side = _CELLS * factor
    return torch.rand(1, in_channels, side, side, generator=generator) * 2 - 1
