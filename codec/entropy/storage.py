"""entropy.safetensors: the weights and tables of a SymbolCoder as integer tensors.

| tensor | type, shape | content |
| --- | --- | --- |
| mean_weights | int32 (sum of K) | channel after channel, pass after pass |
| scale_weights | int32 (sum of M) | in the same order |
| constants | int32 (C, passes, 3) | mean_constant, scale_constant, scale_raw_constant |
| thresholds | int32 (B - 1) | see `Tables` |
| frequencies | uint16 (4 B, 51) | see `Tables` |
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from codec.entropy.context import MAX_CHANNELS, WEIGHT_LIMIT, Predictor, sizes
from codec.entropy.lattice import PASSES
from codec.entropy.tables import Tables, TablesError

_VERSION_KEY = "latent_codec_entropy"
_VERSION = "1"
CODER_DTYPES: Mapping[str, np.dtype[Any]] = {
    "constants": np.dtype(np.int32),
    "frequencies": np.dtype(np.uint16),
    "mean_weights": np.dtype(np.int32),
    "scale_weights": np.dtype(np.int32),
    "thresholds": np.dtype(np.int32),
}

Predictors = tuple[tuple[Predictor, ...], ...]


def write_coder_file(path: str | os.PathLike[str], predictors: Predictors, tables: Tables) -> None:
    """Write predictors and tables; equal ones give equal bytes."""
    write_tensors(path, _VERSION, coder_tensors(predictors, tables))


def write_tensors(
    path: str | os.PathLike[str], version: str, tensors: Mapping[str, NDArray[Any]]
) -> None:
    """Write a coder's tensors; equal ones give equal bytes."""
    # One metadata key only: safetensors writes several in an order that changes from run to run.
    Path(path).write_bytes(safetensors.numpy.save(dict(tensors), {_VERSION_KEY: version}))


def coder_tensors(predictors: Predictors, tables: Tables) -> dict[str, NDArray[Any]]:
    """Return predictors and tables as the tensors that a file holds."""
    flat = [predictor for channel in predictors for predictor in channel]
    constants = [[p.mean_constant, p.scale_constant, p.scale_raw_constant] for p in flat]
    return {
        "constants": np.array(constants, np.int32).reshape(len(predictors), len(PASSES), 3),
        "frequencies": tables.frequencies.astype(np.uint16),
        "mean_weights": np.concatenate([p.mean_weights for p in flat]).astype(np.int32),
        "scale_weights": np.concatenate([p.scale_weights for p in flat]).astype(np.int32),
        "thresholds": tables.thresholds.astype(np.int32),
    }


def read_coder_file(path: str | os.PathLike[str]) -> tuple[Predictors, Tables]:
    """Read what `write_coder_file` wrote.

    Raises:
        TablesError: The file is missing, malformed or of another version.
    """
    path = Path(path)
    return parse_coder(path, read_tensors(path, _VERSION, CODER_DTYPES))


def parse_coder(
    path: Path, tensors: Mapping[str, NDArray[np.integer]]
) -> tuple[Predictors, Tables]:
    """Return what `coder_tensors` made tensors of.

    Raises:
        TablesError: Their shapes or values do not fit.
    """
    constants = tensors["constants"].astype(np.int64)
    num_channels = len(constants) if constants.ndim else 0
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise TablesError(
            f"{path}: entropy tables for {num_channels} channels were found where 1 to "
            f"{MAX_CHANNELS} are possible; export the model again"
        )
    num_mean, num_scale = np.array(list(sizes(num_channels))).sum(axis=0).tolist()
    expected = {
        "constants": (num_channels, len(PASSES), 3),
        "mean_weights": (num_mean,),
        "scale_weights": (num_scale,),
    }
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise TablesError(
                f"{path}: {name} of shape {tensors[name].shape} was found where {num_channels} "
                f"channels ask for {shape}; export the model again"
            )
    for name in ("mean_weights", "scale_weights"):
        if (np.abs(tensors[name].astype(np.int64)) >= WEIGHT_LIMIT).any():
            raise TablesError(
                f"{path}: {name} beyond {WEIGHT_LIMIT} were found, which could overflow; "
                "export the model again"
            )
    tables = Tables(
        thresholds=tensors["thresholds"].astype(np.int64),
        frequencies=tensors["frequencies"].astype(np.int32),
    )
    return _split(constants, tensors["mean_weights"], tensors["scale_weights"]), tables


def read_version(path: Path) -> str | None:
    """Return what kind of coder a file holds, as its metadata says.

    Raises:
        TablesError: The file is missing or no safetensors file.
    """
    with _opened(path) as file:
        return (file.metadata() or {}).get(_VERSION_KEY)


def tensor_names(path: Path) -> frozenset[str]:
    """Return the names of a file's tensors.

    Raises:
        TablesError: The file is missing or no safetensors file.
    """
    with _opened(path) as file:
        return frozenset(file.keys())


def read_tensors(
    path: Path, version: str, dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, NDArray[Any]]:
    """Read the tensors with the names and types that a format has.

    Raises:
        TablesError: The file is missing, malformed or of another version.
    """
    with _opened(path) as file:
        stated = (file.metadata() or {}).get(_VERSION_KEY)
        if stated != version:
            raise TablesError(
                f"{path}: entropy tables of version {stated} were found where {version} is "
                "expected; export the model again, or update latent-codec"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = {name: tensor.dtype for name, tensor in tensors.items()}
    if found != dict(dtypes):
        raise TablesError(
            f"{path}: tensors {sorted(found)} were found where {sorted(dtypes)} of their integer "
            "types are expected; export the model again"
        )
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with it becomes a `TablesError`."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except OSError as error:
        raise TablesError(
            f"{path}: the entropy tables cannot be read ({error.strerror or error}); "
            "check the path, or export the model again"
        ) from error
    except safetensors.SafetensorError as error:
        raise TablesError(
            f"{path}: no safetensors file ({error}); export the model again"
        ) from error


def _split(
    constants: NDArray[np.int64],
    mean_weights: NDArray[np.integer],
    scale_weights: NDArray[np.integer],
) -> Predictors:
    """Hand each pass of each channel its part of the weights."""
    counts = np.array(list(sizes(len(constants))))
    ends = counts.cumsum(axis=0)[:-1]
    predictors = [
        Predictor(means, int(row[0]), scales, int(row[1]), int(row[2]))
        for means, scales, row in zip(
            np.split(mean_weights.astype(np.int64), ends[:, 0]),
            np.split(scale_weights.astype(np.int64), ends[:, 1]),
            constants.reshape(-1, 3),
            strict=True,
        )
    ]
    num = len(PASSES)
    return tuple(tuple(predictors[i : i + num]) for i in range(0, len(predictors), num))
