"""Whole images to latents or codes, once at the start of a run; its processes share the work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import track

from codec.images import ImageError
from train.entropy.frozen import Encoded, Frozen
from train.samples.sources import ImageSource

TOGETHER = 8
"""Images of each process that are encoded before they are exchanged."""


@dataclass(slots=True)
class EncodedImages:
    """What many images became.

    Attributes:
        latents: of each image, or its codes; with its mirrored copy behind it if there is one.
        unreadable: why images cannot be read, by their keys.
        num_images: that `latents` come from.
        num_small: images left out, smaller than a crop.
        num_beyond: images left out, beyond the bound on memory.
    """

    latents: list[Encoded] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    num_images: int = 0
    num_small: int = 0
    num_beyond: int = 0


def encode_images(
    frozen: Frozen,
    source: ImageSource,
    numbers: Sequence[int],
    accelerator: Accelerator,
    *,
    flip: bool = False,
    min_side: int = 1,
    room_bytes: float = math.inf,
) -> EncodedImages:
    """Encode images by number, shared among the processes; all of them get all latents.

    Args:
        frozen: the autoencoder.
        source: the images.
        numbers: which, and in which order.
        accelerator: of the run.
        flip: also encode each mirrored.
        min_side: least side of the latents, in cells.
        room_bytes: stop before latents take more.
    """
    found = EncodedImages()
    rank, count = accelerator.process_index, accelerator.num_processes
    console = Console(stderr=True)
    starts = track(
        range(0, len(numbers), TOGETHER * count),
        "encoding images",
        console=console,
        transient=True,
        disable=not (accelerator.is_main_process and console.is_terminal),
    )
    for start in starts:
        part = numbers[start : start + TOGETHER * count]
        mine = [(i, _encode(frozen, source, part[i], flip)) for i in range(rank, len(part), count)]
        for i, result in sorted(gather_object(mine), key=lambda entry: entry[0]):
            if isinstance(result, str):
                found.unreadable[source.key(part[i])] = result
            elif min(result[0].shape[1:]) < min_side:
                found.num_small += 1
            elif (room_bytes := room_bytes - sum(copy.nbytes for copy in result)) < 0:
                found.num_beyond = len(numbers) - start - i
                return found
            else:
                found.latents += result
                found.num_images += 1
    return found


def _encode(frozen: Frozen, source: ImageSource, number: int, flip: bool) -> list[Encoded] | str:
    """Latents of an image and of its mirrored copy, or why it cannot be read."""
    try:
        pixels = source.load(number)
    except ImageError as error:
        return str(error)
    copies = [pixels, np.ascontiguousarray(pixels[:, ::-1])] if flip else [pixels]
    return [frozen.encode(copy) for copy in copies]
