"""Training crops: which crop sample i is depends on (seed, i) alone.

Not on the process, the batch size, the number of workers or the moment: a resumed run, a run on two
processes and an uninterrupted one on a single process see the same crops in the same order.
B batch, S side of a crop.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.images import ImageError, Pixels
from train.samples.crops import Box, cut, draw_box
from train.samples.pool import ImagePool
from train.samples.sources import DataError
from train.sections import DataConfig


class Batch(NamedTuple):
    """Crops of one process and step.

    Attributes:
        pixels: uint8 (B, 3, S, S).
        labels: int64 (B,), places in the dataset's `classes`, -1 where there is none.
        indices: int64 (B,), the samples' numbers.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor


class CropDataset:
    """Random crops of images; sample i is drawn from (seed, i) and i may grow without end.

    An image that cannot be read is replaced by the next one that can, and recorded in `unreadable`.

    Args:
        pool: the images.
        config: how crops are drawn.
        seed: the run's seed.

    Attributes:
        classes: names of the class labels.
        unreadable: why images met so far cannot be read, by their keys.
        decoded: all images on the device, once `train.samples.loader` has put them there.
    """

    def __init__(self, pool: ImagePool, config: DataConfig, seed: int) -> None:
        self.pool = pool
        self.config = config
        self.seed = seed
        self.classes = pool.classes
        self.unreadable: dict[str, str] = {}
        self.decoded: dict[int, Tensor] | None = None
        self._broken: set[int] = set()
        self._cache: dict[int, Pixels] = {}
        self._cache_bytes = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Pixels, int, int]:
        """Sample number `index`: its crop uint8 (S, S, 3), class label (or -1), and number."""
        image, pixels = self.read(self.image_number(index))
        crop = cut(pixels, self.box(index, *pixels.shape[:2]), self.config.crop_size)
        return crop, self.pool.label(image), index

    def batch(self, indices: Iterable[int]) -> Batch:
        """Several samples in tensors."""
        crops, labels, numbers = zip(*map(self.__getitem__, indices), strict=True)
        pixels = np.stack([crop.transpose(2, 0, 1) for crop in crops])
        return Batch(torch.from_numpy(pixels), torch.tensor(labels), torch.tensor(numbers))

    def image_number(self, index: int) -> int:
        """The image of a sample; each image has one sample in an epoch."""
        epoch, position = divmod(index, len(self.pool))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch, 0))
            self._epoch, self._order = epoch, rng.permutation(len(self.pool))
        return int(self._order[position])

    def box(self, index: int, height: int, width: int) -> Box:
        """Where a sample lies in its image."""
        rng = np.random.default_rng((self.seed, index, 1))
        return draw_box(height, width, self.config, rng)

    def read(self, number: int) -> tuple[int, Pixels]:
        """Image `number`, or the next one that can be read: its own number and its pixels.

        Raises:
            DataError: no image can be read.
        """
        for image in chain(range(number, len(self.pool)), range(number)):
            if image in self._cache:
                return image, self._cache[image]
            if image in self._broken:
                continue
            try:
                pixels = self.pool.load(image)
            except ImageError as error:
                self.record(image, error)
                continue
            if self._cache_bytes + pixels.nbytes <= self._cache_limit():
                self._cache[image] = pixels
                self._cache_bytes += pixels.nbytes
            return image, pixels
        raise self.no_image_error()

    def record(self, image: int, error: ImageError) -> None:
        """Remember that an image cannot be read."""
        self._broken.add(image)
        self.unreadable[self.pool.key(image)] = str(error)

    def no_image_error(self) -> DataError:
        """What to raise when every image is recorded as unreadable."""
        first = next(iter(self.unreadable.values()))
        return DataError(f"none of the {len(self.pool)} training images can be read; {first}")

    def fingerprint(self) -> dict[str, Any]:
        """Which images these are, see `ImagePool.fingerprint`."""
        return self.pool.fingerprint()

    def _cache_limit(self) -> float:
        """Bytes of decoded images that this process may keep; loader processes share the whole."""
        if self.config.cache == "none":
            return 0
        return self.config.cache_gib * 2**30 / max(1, self.config.num_workers)

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process starts with an empty cache."""
        return self.__dict__ | {"decoded": None, "_cache": {}, "_cache_bytes": 0}


def to_unit(batch: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1] on the device, channels last."""
    batch = batch.to(device, non_blocking=True)
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
