"""What the codes of images cost under a token prior, beside simpler models and beside real files.

All see the same codes: those of the square in the middle of each image, scaled to the prior's size.
The prior's cost is its exact negative log-likelihood. Sampling is timed with and without the cache
of keys and values, in turn, on the same images.

Legend: N images, T codes of an image.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codec import images
from codec.console import EXPECTED_ERRORS, error_sentence
from codec.dataset.preprocess import center_square
from codec.entropy.index_tables import Indices
from codec.errors import LatentCodecError
from codec.prior.tokens import TokenPrior
from eval.benchmark import finish
from eval.coded_files import open_coded
from eval.latents.entropy import entropy_bits, order0_bits
from eval.rate_distortion import name_below
from eval.results import Failure
from eval.token_prior_report import CacheTimes, ClassCost, CodeCost, TokenReport

TIMED_IMAGES = 4


class NoImagesError(LatentCodecError):
    """None of the images can be measured."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """One image.

    Attributes:
        label: its class; None for a prior without classes.
        indices: its codes.
        estimate_bits: what the codec's own coder says they cost; None where it cannot tell.
        payload_bytes: what they take in a file.
        file_bytes: the whole file.
    """

    label: int | None
    indices: Indices
    estimate_bits: float | None
    payload_bytes: int
    file_bytes: int


def measure_tokens(
    prior: TokenPrior,
    paths: Iterable[Path],
    *,
    folder: Path | None = None,
    batch_size: int = 8,
    rounds: int = 3,
    advance: Callable[[], None] = lambda: None,
) -> TokenReport:
    """Compare what codes cost, and time the cache.

    Args:
        prior: the prior.
        paths: the images; the class of one is the name of its folder. A broken one is recorded
            and passed over.
        folder: names of images are relative to it where they lie below it, else file names.
        batch_size: images whose likelihood is computed together.
        rounds: of timing; 0 leaves it out.
        advance: is called after each image.

    Raises:
        NoImagesError: none can be measured.
    """
    measured: list[_Measured] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            measured.append(_measure(prior, path))
        except EXPECTED_ERRORS as error:
            failures.append(Failure(name_below(path, folder), error_sentence(error)))
        advance()
    if not measured:
        reason = f"; {failures[0].error}" if failures else ""
        raise NoImagesError(f"found no image to measure{reason}: give a folder of images")
    indices = [image.indices for image in measured]
    labels = [image.label for image in measured]
    costs = {
        "given the class" if prior.info.class_names else "this prior": prior.bits(
            indices, labels, batch_size=batch_size
        )
    }
    if prior.info.class_names and prior.has_null_class:
        nowhere = [None] * len(labels)
        costs["without the class"] = prior.bits(indices, nowhere, batch_size=batch_size)
    return TokenReport(
        prior=prior.info.name,
        codec=prior.codec.name,
        num_images=len(measured),
        codes_per_image=prior.layout.length,
        size=prior.info.size,
        costs=tuple(_costs(prior, measured, {k: float(v.sum()) for k, v in costs.items()})),
        classes=tuple(_by_class(prior, labels, list(costs.values()))),
        times=time_cache(prior, rounds) if rounds else None,
        device=str(prior.device),
        dtype=str(prior.dtype).removeprefix("torch."),
        errors=tuple(failures),
    )


def time_cache(prior: TokenPrior, rounds: int) -> CacheTimes:
    """Sample the same images with and without the cache, in turn."""
    count = TIMED_IMAGES
    num_classes = len(prior.info.class_names)
    labels = [i % num_classes if num_classes else None for i in range(count)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, list[Indices]] = {}
    for _ in range(rounds):
        for use_cache, taken in seconds.items():
            start = time.perf_counter()
            found[use_cache] = list(
                prior.sample_indices(labels, range(count), batch_size=count, use_cache=use_cache)
            )
            finish(prior.device)
            taken.append(time.perf_counter() - start)
    same = all(
        np.array_equal(one, other)
        for first, second in zip(found[True], found[False], strict=True)
        for one, other in zip(first, second, strict=True)
    )
    cached, uncached = statistics.median(seconds[True]), statistics.median(seconds[False])
    return CacheTimes(count, rounds, cached, uncached, same)


def _measure(prior: TokenPrior, path: Path) -> _Measured:
    names = prior.info.class_names
    label = prior.info.class_number(path.parent.name) if names else None
    width, height = prior.info.size
    assert width == height  # priors are trained on squares
    pixels = np.ascontiguousarray(center_square(images.load(path).pixels, width))
    indices = prior.encode(pixels)
    coded = open_coded(prior.codec, prior.codec.compress(pixels))
    assert all(map(np.array_equal, indices, coded.planes))
    return _Measured(label, indices, coded.estimate_bits, coded.coded_bytes, coded.file_bytes)


def _costs(
    prior: TokenPrior, measured: Sequence[_Measured], own: dict[str, float]
) -> Iterable[CodeCost]:
    """Every model's cost, from sums of bits over all images."""
    count, length = len(measured), prior.layout.length
    num_pixels = prior.info.size[0] * prior.info.size[1]
    indices = [image.indices for image in measured]
    sums = {f"token prior, {name}" if "class" in name else name: b for name, b in own.items()}
    estimates = [image.estimate_bits for image in measured]
    if None not in estimates:
        sums["file's coder, ideal"] = math.fsum(bits or 0.0 for bits in estimates)
    sums["file's coder, payload"] = 8.0 * sum(image.payload_bytes for image in measured)
    sums["whole files"] = 8.0 * sum(image.file_bytes for image in measured)
    sums["order 0 over all these images"] = _pooled_bits(prior, indices)
    sums["order 0 of each image, histogram not counted"] = math.fsum(
        order0_bits(grid[None]) for image in indices for grid in image
    )
    sums["every code as likely"] = count * math.fsum(
        grid.size * math.log2(size)
        for grid, size in zip(indices[0], prior.layout.sizes, strict=True)
    )
    for name, bits in sums.items():
        yield CodeCost(name, bits / (count * length), bits / (count * num_pixels))


def _pooled_bits(prior: TokenPrior, indices: Sequence[Indices]) -> float:
    """Bits of all codes under the frequencies that each codebook's codes have in all images."""
    total = 0.0
    for number, size in enumerate(prior.layout.sizes):
        codes = np.concatenate([image[number].ravel() for image in indices])
        total += codes.size * entropy_bits(np.bincount(codes, minlength=size))
    return total


def _by_class(
    prior: TokenPrior, labels: Sequence[int | None], bits: Sequence[np.ndarray]
) -> Iterable[ClassCost]:
    numbers = np.array([-1 if label is None else label for label in labels])
    for number, name in enumerate(prior.info.class_names):
        chosen = numbers == number
        if chosen.any():
            means = [float(one[chosen].mean()) / prior.layout.length for one in bits]
            null = means[1] if len(means) > 1 else None
            yield ClassCost(name, int(chosen.sum()), means[0], null)
