"""Images of a split as a prior's codec and the features see them, and latents as images again.

Legend: N images, B batch, C latent channels, h w latent grid, D features, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.images import Pixels, from_unit, to_unit
from codec.pipeline import Codec
from eval.distribution.features import FEATURES, Features, batches, extract, pooled
from eval.distribution.image_sets import ImageSet
from eval.lpips import PerceptualDistance
from eval.priors.kept import Keeper, Tensors

BATCH = 8  # B; fixed, as it changes the last bits

Advance = Callable[[], None]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Instruments:
    """What images are measured with.

    Attributes:
        codec: the prior's; gives scaled latents.
        network: LPIPS(squeeze), on the codec's device.
        keeper: keeps features and latents of splits.
    """

    codec: Codec
    network: PerceptualDistance
    keeper: Keeper

    @property
    def codec_key(self) -> str:
        """What the latents depend on beside the images."""
        info = self.codec.info
        name = self.codec.name if info is None else info.latent_id
        return f"{name} {self.codec.dtype} {self.codec.device.type}"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSet:
    """A set of images with what was computed of each.

    Attributes:
        images: the set.
        features: float64 (N, D).
        latents: scaled, float32 (N, C, h, w), on the CPU.
    """

    images: ImageSet
    features: Features
    latents: Tensor

    def __len__(self) -> int:
        return len(self.images)


def encode_set(images: ImageSet, tools: Instruments, advance: Advance = _nothing) -> EncodedSet:
    """Compute features and latents of images, or find them kept.

    Args:
        images: all of one size.
        tools: what to measure with.
        advance: is called after each image.
    """

    def make() -> Tensors:
        found = [
            (pooled(tools.network, x).cpu(), tools.codec.encode(x).cpu())
            for x in _tensors(images, tools, advance)
        ]
        features, latents = zip(*found, strict=True)
        return {"features": torch.cat(features), "latents": torch.cat(latents)}

    kept = tools.keeper.get("images", images.fingerprint, tools.codec_key, FEATURES, make=make)
    return EncodedSet(images, kept["features"].double().numpy(), kept["latents"])


def mirrored_latents(images: ImageSet, tools: Instruments, advance: Advance = _nothing) -> Tensor:
    """Return the latents (N, C, h, w) of images whose left and right are exchanged."""

    def make() -> Tensors:
        flipped = (np.ascontiguousarray(pixels[:, ::-1]) for pixels in images)
        parts = [tools.codec.encode(x).cpu() for x in _tensors(flipped, tools, advance)]
        return {"latents": torch.cat(parts)}

    return tools.keeper.get("mirrored", images.fingerprint, tools.codec_key, make=make)["latents"]


def decoded(codec: Codec, latents: Tensor) -> Iterator[Pixels]:
    """Yield the images, uint8 (H, W, 3), of scaled latents (N, C, h, w)."""
    for part in torch.split(latents, BATCH):
        for image in codec.decode(part):
            yield from_unit(image.cpu().numpy())


def decoded_features(latents: Tensor, tools: Instruments, advance: Advance = _nothing) -> Features:
    """Return the features (N, D) of the images that scaled latents (N, C, h, w) decode to."""
    return extract(decoded(tools.codec, latents), tools.network, batch_size=BATCH, advance=advance)


@torch.inference_mode()
def _tensors(images: Iterable[Pixels], tools: Instruments, advance: Advance) -> Iterator[Tensor]:
    """Yield batches (B, 3, H, W) in [-1, 1] on the codec's device."""
    for batch in batches(images, BATCH):
        x = torch.from_numpy(np.stack([to_unit(pixels) for pixels in batch]))
        yield x.to(tools.codec.device).contiguous(memory_format=torch.channels_last)
        for _ in batch:
            advance()
