"""Training crops: which crop sample i is depends on (seed, i) alone.

Not on the process, the batch size or the moment: a resumed run, a run on two processes and an
uninterrupted one on a single process see the same crops in the same order.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from codec import images
from codec.errors import LatentCodecError
from train.config import DataConfig


class DataError(LatentCodecError):
    """The training data cannot be used."""


def find_training_images(config: DataConfig) -> list[Path]:
    """Every image of the folders but the excluded names, sorted.

    Raises:
        DataError: an exclude file is missing or excludes nothing, or no image is left.
    """
    files = sorted({path for folder in config.folders for path in images.find([folder])})
    for listing in config.exclude:
        names = read_names(listing)
        kept = [path for path in files if path.name not in names]
        if len(kept) == len(files):
            raise DataError(
                f"none of the {len(names)} names in {listing} is in {', '.join(config.folders)}: "
                "expected it to exclude images, check data.exclude and data.folders"
            )
        files = kept
    if not files:
        raise DataError(f"no image is left in {', '.join(config.folders)}: check data.folders")
    return files


def read_names(listing: str | Path) -> set[str]:
    """The image names in a text file, one a line.

    Raises:
        DataError: the file is missing.
    """
    try:
        return set(Path(listing).read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(f"found no list of names {listing}, expected a text file") from error


class CropDataset(Dataset[Tensor]):
    """Random crops of images; item i is drawn from (seed, i) and i may grow without end.

    An image that cannot be read is replaced by the next one that can, and recorded in `unreadable`.

    Args:
        files: the images.
        config: how crops are drawn.
        seed: the run's seed.
    """

    def __init__(self, files: Sequence[Path], config: DataConfig, seed: int) -> None:
        self.files = list(files)
        self.config = config
        self.seed = seed
        self.unreadable: dict[Path, str] = {}
        self._cache: dict[Path, np.ndarray] = {}
        self._cache_bytes = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> Tensor:
        """Crop number `index`: uint8 (3, crop_size, crop_size)."""
        epoch, position = divmod(index, len(self.files))
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch, 0))
            self._epoch, self._order = epoch, order.permutation(len(self.files))
        pixels = self._read(int(self._order[position]))
        crop = draw_crop(pixels, self.config, np.random.default_rng((self.seed, index, 1)))
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))

    def _read(self, number: int) -> np.ndarray:
        for offset in range(len(self.files)):
            path = self.files[(number + offset) % len(self.files)]
            if path in self._cache:
                return self._cache[path]
            if path in self.unreadable:
                continue
            try:
                pixels = images.load(path).pixels
            except images.ImageError as error:
                self.unreadable[path] = str(error)
                continue
            if self._cache_bytes + pixels.nbytes <= self.config.cache_gib * 2**30:
                self._cache[path] = pixels
                self._cache_bytes += pixels.nbytes
            return pixels
        first = next(iter(self.unreadable.values()))
        raise DataError(f"none of the {len(self.files)} training images can be read; {first}")


def draw_crop(pixels: np.ndarray, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """A random crop (crop_size, crop_size, 3) of uint8 pixels (H, W, 3), scaled down at random.

    Scaling down by up to `min_scale` hides what lossy sources lost, chroma at half resolution above
    all. An image smaller than the crop is scaled up to it.
    """
    size = config.crop_size
    height, width = pixels.shape[:2]
    side = min(round(size / rng.uniform(config.min_scale, 1.0)), height, width)
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = pixels[top : top + side, left : left + side]
    if side != size:
        scaled = PIL.Image.fromarray(crop).resize((size, size), PIL.Image.Resampling.BICUBIC)
        crop = np.asarray(scaled)
    if config.flip and rng.random() < 0.5:
        crop = crop[:, ::-1]
    return crop


class ShareSampler(Sampler[int]):
    """The sample indices of one process, from any place on, without end.

    Every global step takes the next `batch_size * num_processes` indices; process r takes the r-th
    share of them. So the union over processes does not depend on how many there are.
    """

    def __init__(self, start: int, batch_size: int, rank: int, num_processes: int) -> None:
        self.start = start
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield from range(first, first + self.batch_size)
            first += self.batch_size * self.num_processes


def make_loader(
    dataset: CropDataset, start: int, batch_size: int, rank: int, num_processes: int
) -> DataLoader[Tensor]:
    """Batches uint8 (B, 3, crop_size, crop_size) of one process, from sample `start` on."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=ShareSampler(start, batch_size, rank, num_processes),
        num_workers=dataset.config.num_workers,
        persistent_workers=dataset.config.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def to_unit(batch: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1] on the device, channels last."""
    batch = batch.to(device, non_blocking=True)
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
