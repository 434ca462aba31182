"""Where each picture stands in a grid, and what lies between two latents."""

import numpy as np
import pytest
import torch

from eval.latents.pictures import GAP, interpolation_strip, reconstruction_grid, to_pixels


def flat(value: int) -> np.ndarray:
    return np.full((10, 12, 3), value, dtype=np.uint8)


def test_originals_stand_above_their_reconstructions() -> None:
    originals, reconstructions = [flat(k) for k in range(5)], [flat(100 + k) for k in range(5)]
    grid = reconstruction_grid(originals, reconstructions, columns=3)
    assert grid.shape == (4 * 10 + 3 * GAP, 3 * 12 + 2 * GAP, 3)
    corners = grid[:: 10 + GAP, :: 12 + GAP, 0]
    assert corners.tolist() == [[0, 1, 2], [100, 101, 102], [3, 4, 255], [103, 104, 255]]
    assert (grid[10 : 10 + GAP] == 255).all()
    assert (grid[:10, :12] == 0).all()


def test_numbers_of_pictures_must_agree() -> None:
    with pytest.raises(ValueError, match="found 2 originals and 1 reconstructions"):
        reconstruction_grid([flat(0), flat(1)], [flat(2)])
    with pytest.raises(ValueError, match="at least one"):
        reconstruction_grid([], [])


def test_a_strip_is_linear_in_latents() -> None:
    def decode(z: torch.Tensor) -> torch.Tensor:
        return z[:, :1].expand(-1, 3, -1, -1)

    first, second = torch.full((2, 4, 4), -1.0), torch.full((2, 4, 4), 1.0)
    strip = interpolation_strip(decode, first, second, steps=5)
    assert strip.shape == (4, 5 * 4 + 4 * GAP, 3)
    assert strip[0, :: 4 + GAP, 0].tolist() == [0, 64, 128, 191, 255]


def test_pixels_are_clamped_and_rounded() -> None:
    sample = torch.tensor([-3.0, -1.0, 0.001, 7.0]).view(1, 1, 2, 2).expand(-1, 3, -1, -1)
    assert to_pixels(sample)[0, ..., 2].tolist() == [[0, 0], [128, 255]]
