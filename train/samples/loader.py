"""Endless loaders of training batches, in this process, in others, or on the device.

Which samples a batch holds follows from its place in the run alone, so a loader can start anywhere:
that is how a resumed run goes on.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from codec.console import print_warning
from codec.images import ImageError, Pixels
from train.data import Batch, CropDataset
from train.samples.crops import cut_tensor
from train.samples.sources import DataError

CPU = torch.device("cpu")
_DECODED_TOGETHER = 64


class ShareSampler(Sampler[range]):
    """The sample numbers of one process's batches, from any place on, without end.

    Every global step takes the next `batch_size * num_processes` numbers; process r takes the r-th
    share of them. So the union over processes does not depend on how many there are.
    """

    def __init__(self, start: int, batch_size: int, rank: int, num_processes: int) -> None:
        self.first = start + rank * batch_size
        self.batch_size = batch_size
        self.stride = batch_size * num_processes

    def __iter__(self) -> Iterator[range]:
        first = self.first
        while True:
            yield range(first, first + self.batch_size)
            first += self.stride


class _Batches(Dataset[tuple[Batch | DataError, dict[str, str]]]):
    """Batches by their sample numbers, each with what was found unreadable since the one before.

    A loader process has a dataset of its own; this is how the main process learns of its records.
    An error is handed over too, since one that is raised arrives there wrapped in a traceback.
    """

    def __init__(self, dataset: CropDataset) -> None:
        self.dataset = dataset
        self._reported = 0

    def __getitem__(self, indices: range) -> tuple[Batch | DataError, dict[str, str]]:
        batch: Batch | DataError
        try:
            batch = self.dataset.batch(indices)
        except DataError as error:
            batch = error
        news = dict(islice(self.dataset.unreadable.items(), self._reported, None))
        self._reported += len(news)
        return batch, news


class CropLoader:
    """Batches cut in this process or in `num_workers` others, without end."""

    def __init__(self, dataset: CropDataset, sampler: ShareSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler

    def __iter__(self) -> Iterator[Batch]:
        return self._from_workers() if self.dataset.config.num_workers else self._from_a_thread()

    def _from_a_thread(self) -> Iterator[Batch]:
        """One batch is cut while the step before it computes; Pillow and torch share well."""
        numbers = iter(self.sampler)
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self.dataset.batch, next(numbers))
            while True:
                batch = coming.result()
                coming = thread.submit(self.dataset.batch, next(numbers))
                yield Batch(*map(Tensor.pin_memory, batch)) if torch.cuda.is_available() else batch

    def _from_workers(self) -> Iterator[Batch]:
        loader = DataLoader(
            _Batches(self.dataset),
            batch_size=None,
            sampler=self.sampler,
            num_workers=self.dataset.config.num_workers,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # else it draws from the global one
            pin_memory=torch.cuda.is_available(),
        )
        for batch, unreadable in loader:
            self.dataset.unreadable.update(unreadable)
            if isinstance(batch, DataError):
                raise batch
            yield batch


class DeviceLoader:
    """Batches cut on the device from decoded images that are all kept there, without end.

    The samples are those of `CropLoader` but for rounding, see `train.samples.crops`.
    """

    def __init__(
        self, dataset: CropDataset, sampler: ShareSampler, decoded: dict[int, Tensor]
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._decoded = decoded

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.sampler:
            crops, labels = zip(*map(self._sample, indices), strict=True)
            yield Batch(torch.stack(crops), torch.tensor(labels), torch.tensor(indices))

    def _sample(self, index: int) -> tuple[Tensor, int]:
        image = self.dataset.image_number(index)
        while image not in self._decoded:
            image = (image + 1) % len(self.dataset.pool)
        pixels = self._decoded[image]
        box = self.dataset.box(index, *pixels.shape[1:])
        crop = cut_tensor(pixels, box, self.dataset.config.crop_size)
        return crop, self.dataset.pool.label(image)


def make_loader(
    dataset: CropDataset,
    start: int,
    batch_size: int,
    rank: int,
    num_processes: int,
    device: torch.device = CPU,
) -> CropLoader | DeviceLoader:
    """Batches of one process from sample `start` on, to iterate over without end.

    Args:
        dataset: the samples; its configuration decides how they are loaded.
        start: number of the first sample of all processes.
        batch_size: samples a batch.
        rank: number of this process.
        num_processes: how many share the samples.
        device: where images are kept if `data.cache` is device; all of them are decoded now.

    Raises:
        DataError: no image can be read.
    """
    sampler = ShareSampler(start, batch_size, rank, num_processes)
    if dataset.config.cache == "device":
        if dataset.decoded is None:
            dataset.decoded = _decode_all(dataset, device, show=rank == 0)
        if dataset.decoded is not None:
            return DeviceLoader(dataset, sampler, dataset.decoded)
        if rank == 0:
            print_warning(
                f"the {len(dataset.pool)} training images do not fit in data.cache_gib="
                f"{dataset.config.cache_gib:g} once decoded, so as many as fit are cached in "
                "memory, as with data.cache=memory"
            )
    return CropLoader(dataset, sampler)


def _decode_all(
    dataset: CropDataset, device: torch.device, *, show: bool
) -> dict[int, Tensor] | None:
    """All readable images as uint8 (3, H, W) on the device, or None if they do not fit."""

    def load(image: int) -> Pixels | ImageError:
        try:
            return dataset.pool.load(image)
        except ImageError as error:
            return error

    decoded: dict[int, Tensor] = {}
    room, numbers = dataset.config.cache_gib * 2**30, range(len(dataset.pool))
    starts = track(
        range(0, len(numbers), _DECODED_TOGETHER),
        "decoding images",
        console=Console(stderr=True),
        transient=True,
        disable=not show,
    )
    with ThreadPoolExecutor(max(1, dataset.config.num_workers)) as threads:
        for first in starts:
            part = numbers[first : first + _DECODED_TOGETHER]
            for image, pixels in zip(part, threads.map(load, part), strict=True):
                if isinstance(pixels, ImageError):
                    dataset.record(image, pixels)
                    continue
                room -= pixels.nbytes
                decoded[image] = torch.from_numpy(pixels).permute(2, 0, 1).to(device)
            if room < 0:
                return None
    if not decoded:
        raise dataset.no_image_error()
    return decoded


def _ignore_interrupts(worker: int) -> None:
    """Signals to a process group reach loaders too; the run still needs them to end in order."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _context() -> BaseContext | None:
    """How loader processes start: not by a fork of this one, whose threads may hold locks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # one import of torch serves all of them
    if threading.current_thread() is threading.main_thread():
        _start_server()
    return context


def _start_server() -> None:
    """Start the process that loaders are forked from, deaf to SIGTERM: they die with it."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ensure_running()
    finally:
        signal.signal(signal.SIGTERM, previous)
