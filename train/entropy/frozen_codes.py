"""The autoencoder whose codes are coded: it finds indices as for files, and nothing of it changes.

Legend: L codebooks, K codes of one, D channels of latents, h w cells of the finest grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codec import Codec, backbone, images
from codec.catalog import model_directory
from codec.codes import Codes
from codec.entropy.index_tables import Indices
from codec.identity import ENTROPY_FILE
from codec.packer import load_any_coder
from codec.packing import IndicesCoder
from train.entropy.frozen import Frozen, FrozenCodecError

Planes = NDArray[np.int32]  # (L, h, w), coarse to fine, each repeated to the finest grid


@dataclass(frozen=True)
class FrozenCodes(Frozen):
    """An autoencoder with codes.

    Attributes:
        codes: its codebooks.
    """

    codes: Codes

    @torch.no_grad()
    def encode(self, pixels: images.Pixels) -> Planes:
        """Indices of an image uint8 (H, W, 3), as files hold them."""
        model = self.codec.autoencoder
        found = backbone.encode_indices(model, self.codes, self.padded(pixels))
        return join_planes(found)

    def indices(self, planes: Planes) -> Indices:
        """The grid of each codebook."""
        return split_planes(planes, self.codes.strides)

    def present_coder(self) -> IndicesCoder | None:
        """The codec's own coder, if it has one."""
        if not self.has_coder:
            return None
        coder = load_any_coder(self.directory / ENTROPY_FILE)
        assert isinstance(coder, IndicesCoder)  # or the codec would not have loaded
        return coder


def join_planes(indices: Indices) -> Planes:
    """All grids of an image repeated to the finest; each has half of the side of the next."""
    repeats = [1 << level for level in reversed(range(len(indices)))]
    return np.stack(
        [
            grid.repeat(times, axis=0).repeat(times, axis=1)
            for grid, times in zip(indices, repeats, strict=True)
        ]
    )


def split_planes(planes: Planes, strides: Sequence[int]) -> Indices:
    """The grid of each codebook, in place of its repeated codes."""
    return tuple(
        np.ascontiguousarray(plane[::stride, ::stride])
        for plane, stride in zip(planes, strides, strict=True)
    )


def code_vectors(codes: Codes) -> tuple[NDArray[np.float64], ...]:
    """Latents (K, D) that the codes of each codebook stand for, the other codebooks at code 0."""
    side = max(codes.strides)
    tables = []
    for number, size in enumerate(codes.sizes):
        grids = [
            np.zeros((side // stride, size * side // stride), np.int32) for stride in codes.strides
        ]
        grids[number][:] = np.arange(size).repeat(side // codes.strides[number])
        latents = codes.to_latents(tuple(grids))
        tables.append(latents[:, 0, ::side].T.astype(np.float64))
    return tuple(tables)


def open_codes(name: str, device: torch.device | None = None) -> FrozenCodes:
    """Load the autoencoder that `indices.codec` names.

    Raises:
        FrozenCodecError: its latents are continuous.
        LatentCodecError: there is no such model, or it is damaged.
    """
    directory = model_directory(name)
    codec = Codec.from_pretrained(directory, device=device)
    info = codec.info
    assert info is not None  # it has a directory
    if codec.codes is None:
        raise FrozenCodecError(
            f"found continuous latents in indices.codec {name}, expected an autoencoder with "
            "codes; a context model of latents is trained by configs/entropy/context-f8d4.yaml"
        )
    return FrozenCodes(codec, directory, info, codec.codes)
