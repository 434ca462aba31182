"""How few bytes the entropy coder needs, beside others at the same symbols, and how quick it is.

The others are the order-0 entropy of each image, which no coder without contexts can beat (its
histogram is not even charged), zstd at level 19 over the symbols as bytes, and for codes the tables
that a file without an entropy coder brings. All get the symbols of the same files.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import zstandard

from codec import images
from codec.backbone import decode_raw, encode_raw
from codec.console import EXPECTED_ERRORS, error_sentence
from codec.entropy.index_tables import encode_indices
from codec.pipeline import Codec
from eval.benchmark import finish, num_threads
from eval.coded_files import Planes, open_coded
from eval.coding_report import CodedImage, CodingReport, CodingRow, CodingTimes
from eval.latents.entropy import order0_bits
from eval.rate_distortion import name_below
from eval.results import Failure

ZSTD_LEVEL = 19
TIMED_SIDE = 512  # pixels, of the image whose coding is timed
_INTEGERS = (np.int8, np.int16, np.int32)


def measure_coding(
    codec: Codec,
    paths: Iterable[Path],
    *,
    qualities: Sequence[float | None],
    folder: Path | None = None,
    runs: int = 9,
    threads: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> CodingReport:
    """Compare the bytes of the entropy coder with others', and its time with the network's.

    Args:
        codec: the model.
        paths: the images; a broken one is recorded and passed over.
        qualities: 1 to 100 each, or None alone for a model of codes.
        folder: names of images are relative to it where they lie below it, else file names.
        runs: timed rounds.
        threads: processor threads; torch's choice when None.
        advance: is called after each image.

    Raises:
        LatentCodecError: the model makes no files, or a quality is out of range.
    """
    codec.compress(np.full((64, 64, 3), 128, np.uint8), quality=qualities[0])  # wrong use shows now
    by_image: list[list[CodedImage]] = []
    failures: list[Failure] = []
    timed: images.Image | None = None
    with num_threads(threads):
        for path in paths:
            name = name_below(path, folder)
            try:
                image = images.load(path)
                by_image.append([_compare(name, codec, image, quality) for quality in qualities])
            except EXPECTED_ERRORS as error:
                failures.append(Failure(name, error_sentence(error)))
            else:
                timed = timed or image
            advance()
        times = None if timed is None else _time(codec, timed, runs)
    info = codec.info
    assert info is not None  # or it would have made no files
    rows = [
        CodingRow(quality, tuple(entries[index] for entries in by_image))
        for index, quality in enumerate(qualities)
    ]
    return CodingReport(codec.name, info.coder_id, tuple(rows), times, tuple(failures))


def zstd_bytes(planes: Planes) -> tuple[int, str]:
    """Return the length of a zstd frame over symbols, and the integers that they were written as.

    Channel after channel, little-endian, in the narrowest signed type that holds them all.
    """
    symbols = np.concatenate([plane.ravel() for plane in planes])
    fitting = (
        np.dtype(kind)
        for kind in _INTEGERS
        if np.iinfo(kind).min <= symbols.min() and symbols.max() <= np.iinfo(kind).max
    )
    kind = next(fitting)
    content = symbols.astype(kind.newbyteorder("<")).tobytes()
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)), kind.name


def _compare(name: str, codec: Codec, image: images.Image, quality: float | None) -> CodedImage:
    coded = open_coded(codec, codec.compress(image, quality=quality))
    everything = np.concatenate([plane.ravel() for plane in coded.planes])
    zstd, zstd_type = zstd_bytes(coded.planes)
    return CodedImage(
        name=name,
        num_symbols=coded.num_symbols,
        lowest=int(everything.min()),
        highest=int(everything.max()),
        file=coded.file_bytes,
        payload=coded.coded_bytes,
        estimate=None if coded.estimate_bits is None else coded.estimate_bits / 8,
        order0_image=order0_bits(everything[None]) / 8,
        order0_channels=sum(order0_bits(plane[None]) for plane in coded.planes) / 8,
        zstd=zstd,
        zstd_type=zstd_type,
        num_pixels=image.width * image.height,
        own_tables=_with_own_tables(codec, coded.planes),
    )


def _with_own_tables(codec: Codec, planes: Planes) -> int | None:
    """Return the bytes of indices with tables that travel in the file; None for latents."""
    if codec.codes is None:
        return None
    return sum(map(len, encode_indices(tuple(planes), codec.codes.sizes)))


@torch.inference_mode()
def _time(codec: Codec, image: images.Image, runs: int) -> CodingTimes:
    """Time network and entropy coder in turn on one 512x512 picture at the default quality."""
    pixels = _square(image.pixels)
    coded = open_coded(codec, codec.compress(pixels))
    model, unit = codec.autoencoder, torch.from_numpy(images.to_unit(pixels))[None]
    x = unit.to(codec.device, codec.dtype).contiguous(memory_format=torch.channels_last)
    z = encode_raw(model, x)
    work: dict[str, Callable[[], object]] = {
        "network_encode_ms": lambda: encode_raw(model, x),
        "entropy_encode_ms": coded.encode,
        "entropy_decode_ms": coded.decode,
        "network_decode_ms": lambda: decode_raw(model, z),
    }
    for run in work.values():  # first calls allocate and choose kernels
        run()
    rounds = [
        {key: _milliseconds(run, codec.device) for key, run in work.items()} for _ in range(runs)
    ]
    return CodingTimes(
        runs=runs,
        threads=torch.get_num_threads(),
        network=f"{str(codec.dtype).removeprefix('torch.')} on {codec.device}",
        **{key: statistics.median(times[key] for times in rounds) for key in work},
    )


def _square(pixels: images.Pixels) -> images.Pixels:
    """Cut 512x512 pixels out of the middle, a smaller picture mirrored at its edges before."""
    lacking = [max(0, TIMED_SIDE - side) for side in pixels.shape[:2]]
    padded = np.pad(pixels, [(0, lacking[0]), (0, lacking[1]), (0, 0)], mode="symmetric")
    top, left = ((side - TIMED_SIDE) // 2 for side in padded.shape[:2])
    return np.ascontiguousarray(padded[top : top + TIMED_SIDE, left : left + TIMED_SIDE])


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    finish(device)
    start = time.perf_counter()
    run()
    finish(device)
    return 1000 * (time.perf_counter() - start)
