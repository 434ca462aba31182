"""Latents that other programs have stored: .npy, .npz and .safetensors files, read with care.

What their headers claim is compared with the bytes that are there before anything is made by it;
nothing is ever unpickled.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import safetensors
from numpy.lib import format as npy
from numpy.typing import NDArray

from codec.shards.errors import ShardError

SUFFIXES = frozenset({".npy", ".npz", ".safetensors"})
MAX_ARRAY_BYTES = 2**30

_MAX_HEADER = 10_000  # numpy's own bound for headers that are taken apart safely


@dataclass(frozen=True, slots=True, eq=False)
class CachedArray:
    """Latents of one image as they were stored.

    Attributes:
        name: Of the image within the file; "" where the file holds one.
        values: float32 (C, h, w); C may be twice the model's where a posterior was stored.
    """

    name: str
    values: NDArray[np.float32]


def cache_files(source: Path) -> list[Path]:
    """Returns the files with latents below a folder, sorted, or the one file that is given.

    Raises:
        ShardError: There are none.
    """
    found = [source] if source.is_file() else sorted(_below(source))
    if not found:
        raise ShardError(
            f"found no latents in {source}, expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def read_cache(path: Path) -> Iterator[CachedArray]:
    """Yields the latents of every image in a file.

    A tensor (N, C, h, w) is N images. Of several arrays in a file those are taken whose names begin
    with "latent" or "moments"; if there are none, all of three or four dimensions.

    Raises:
        ShardError: The file is damaged, or holds no latents.
        OSError: It cannot be read.
    """
    try:
        arrays = dict(_READERS[path.suffix.lower()](path))
    except KeyError:
        raise ShardError(
            f"{path}: found the ending {path.suffix!r}, expected {', '.join(sorted(SUFFIXES))}"
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        if isinstance(error, ShardError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ShardError(f"{path}: found damage ({reason}), expected an array file") from None
    grids = {name: array for name, array in arrays.items() if array.ndim in (3, 4)}
    named = {
        name: array
        for name, array in grids.items()
        if name.rpartition(".")[2].startswith(("latent", "moments"))
        or name.startswith(("latent", "moments"))
    }
    chosen = named or grids
    if not chosen:
        raise ShardError(f"{path}: found no array (C, h, w) or (N, C, h, w), expected latents")
    for name, array in sorted(chosen.items()):
        prefix = name if len(chosen) > 1 else ""
        if array.ndim == 3:
            yield CachedArray(prefix, _floats(path, array))
            continue
        for number, one in enumerate(array):
            within = f"{number:06d}" if len(array) > 1 else ""
            yield CachedArray("/".join(filter(None, (prefix, within))), _floats(path, one))


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _read_npy(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    with path.open("rb") as stream:
        yield "", _array(stream, path.stat().st_size)


def _read_npz(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as stream:
                yield name, _array(stream, entry.file_size)


def _array(stream: IO[bytes], size: int) -> NDArray[np.generic]:
    """Reads an array of at most `size` bytes; one that does not fit is not read."""
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read_header:
        raise ShardError(f"found version {version} of .npy, expected 1.0 or 2.0")
    shape, is_fortran, dtype = read_header[version](stream, max_header_size=_MAX_HEADER)
    count = 1
    for side in shape:
        count *= side
    if dtype.hasobject or count * dtype.itemsize > min(size, MAX_ARRAY_BYTES):
        raise ShardError(
            f"found an array of {dtype} with shape {shape}, expected numbers in at most "
            f"{min(size, MAX_ARRAY_BYTES)} bytes"
        )
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ShardError("found an array that is cut short, expected all of its bytes")
    order = shape[::-1] if is_fortran else shape
    array: NDArray[np.generic] = np.frombuffer(data, dtype).reshape(order)
    return array.T if is_fortran else array


def _read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise ShardError(f"{path}: found more than {MAX_ARRAY_BYTES} bytes; split the file")
    # torch, since numpy has no bfloat16
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                yield name, tensor.float().numpy()


def _floats(path: Path, array: NDArray[np.generic]) -> NDArray[np.float32]:
    if array.dtype.kind != "f" or 0 in array.shape:
        raise ShardError(
            f"{path}: found {array.dtype} of shape {array.shape}, expected floats (C, h, w)"
        )
    values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise ShardError(f"{path}: found latents that are not finite; encode the image again")
    return values


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
