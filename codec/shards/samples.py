"""What a dataset yields: records as dicts of tensors, numbers and texts, one or a batch.

Everything is of kinds that torch's default collate takes: an absent text is "", an absent class -1.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.latents import Scaling
from codec.shards.records import RecordInfo
from codec.shards.statistics import LatentStatistics

Sample = dict[str, Any]

LOG_VARIANCE_BOUNDS = (-30.0, 20.0)  # diffusers' DiagonalGaussianDistribution


@dataclass(frozen=True, slots=True)
class ChannelScaling:
    """scaled = (raw - shift) * scale, with numbers for each channel.

    Attributes:
        shift: float32 (C, 1, 1).
        scale: float32 (C, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def of_model(cls, scaling: Scaling, channels: int) -> "ChannelScaling":
        """The model's own, as `Codec.encode` scales."""
        ones = torch.ones(channels, 1, 1)
        return cls(scaling.shift_factor * ones, scaling.scaling_factor * ones)

    @classmethod
    def of_statistics(cls, statistics: LatentStatistics) -> "ChannelScaling":
        """To mean 0 and deviation 1 of each channel over the dataset."""
        deviation = np.where(statistics.std > 0, statistics.std, 1.0)
        shift = torch.from_numpy(statistics.mean).float()[:, None, None]
        return cls(shift, torch.from_numpy(1 / deviation).float()[:, None, None])

    def apply(self, raw_latents: Tensor) -> Tensor:
        """Scales (..., C, h, w) in place."""
        return raw_latents.sub_(self.shift).mul_(self.scale)


def sampled(
    raw_latents: NDArray[np.float32], log_variance: NDArray[np.float32], seed: Sequence[int]
) -> NDArray[np.float32]:
    """Draws from a posterior, (C, h, w), the same for the same seed."""
    noise = np.random.default_rng(list(seed)).standard_normal(raw_latents.shape, np.float32)
    deviation = np.exp(0.5 * np.clip(log_variance, *LOG_VARIANCE_BOUNDS))
    drawn: NDArray[np.float32] = raw_latents + deviation * noise
    return drawn


def key_seed(key: str) -> int:
    """Returns a number for a key."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass"))


def describe(info: RecordInfo, label_ids: Mapping[str, int]) -> Sample:
    """Returns what is known of a record, without its latents."""
    return {
        "key": info.key,
        "label": info.label or "",
        "label_id": -1 if info.label is None else label_ids.get(info.label, -1),
        "caption": info.caption or "",
        "original_size": torch.tensor((info.width, info.height)),
        "crop": torch.tensor(info.crop),
        "flip": info.flip,
    }


def describe_batch(infos: Sequence[RecordInfo], label_ids: Mapping[str, int]) -> Sample:
    """Returns what is known of several records: lists of texts, and tensors with B rows."""
    ids = [-1 if info.label is None else label_ids.get(info.label, -1) for info in infos]
    return {
        "key": [info.key for info in infos],
        "label": [info.label or "" for info in infos],
        "label_id": torch.tensor(ids),
        "caption": [info.caption or "" for info in infos],
        "original_size": torch.tensor([(info.width, info.height) for info in infos]),
        "crop": torch.tensor([info.crop for info in infos]),
        "flip": torch.tensor([info.flip for info in infos]),
    }
