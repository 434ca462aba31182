"""entropy.safetensors of a learned context model: integer tensors only.

| tensor | type, shape | content |
| --- | --- | --- |
| deviations | int32 (C) | standard deviations of raw latents, units of 2**-16 |
| KIND.NAME | int16 weights, int32 biases | see `KindWeights`; KIND is root, diagonal or edge |
| frequencies | uint16 (4 B, 51) | see `Tables`; its thresholds are those of `bin_thresholds` |
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from codec.entropy.context import MAX_CHANNELS
from codec.entropy.context_lattice import NUM_NEIGHBOURS
from codec.entropy.context_network import ContextNetwork
from codec.entropy.context_weights import KINDS, LEVELS, KindWeights
from codec.entropy.storage import read_tensors
from codec.entropy.tables import Tables, TablesError, bin_thresholds

CONTEXT_VERSION = "context-1"
MAX_UNITS = 1024

_NAMES = tuple(part.name for part in fields(KindWeights))
_DEVIATIONS, _FREQUENCIES = "deviations", "frequencies"


def write_context_file(
    path: str | os.PathLike[str], network: ContextNetwork, tables: Tables
) -> None:
    """Write network and tables; equal ones give equal bytes."""
    tensors: dict[str, NDArray[Any]] = {
        _DEVIATIONS: network.deviations.astype(np.int32),
        _FREQUENCIES: tables.frequencies.astype(np.uint16),
    }
    for kind, weights in zip(KINDS, network.weights, strict=True):
        for name in _NAMES:
            values = getattr(weights, name).numpy().astype(_dtype(name))
            tensors[f"{kind}.{name}"] = np.ascontiguousarray(values)
    data = safetensors.numpy.save(tensors, {"latent_codec_entropy": CONTEXT_VERSION})
    Path(path).write_bytes(data)


def read_context_file(path: str | os.PathLike[str]) -> tuple[ContextNetwork, Tables]:
    """Read what `write_context_file` wrote.

    Raises:
        TablesError: The file is missing, malformed or of another version.
    """
    path = Path(path)
    dtypes: dict[str, np.dtype[Any]] = {
        _DEVIATIONS: np.dtype(np.int32),
        _FREQUENCIES: np.dtype(np.uint16),
    }
    dtypes |= {f"{kind}.{name}": _dtype(name) for kind in KINDS for name in _NAMES}
    tensors = read_tensors(path, CONTEXT_VERSION, dtypes)
    deviations = tensors[_DEVIATIONS].astype(np.int64)
    if not 1 <= deviations.size <= MAX_CHANNELS or deviations.ndim != 1 or deviations.min() < 1:
        raise TablesError(
            f"{path}: deviations of shape {deviations.shape} were found where 1 to {MAX_CHANNELS} "
            "positive ones are possible; export the model again"
        )
    weights = tuple(
        _kind_weights(path, kind, neighbours, len(deviations), tensors)
        for kind, neighbours in zip(KINDS, NUM_NEIGHBOURS, strict=True)
    )
    tables = Tables(bin_thresholds(), tensors[_FREQUENCIES].astype(np.int32))
    return ContextNetwork(deviations, weights), tables


def _kind_weights(
    path: Path, kind: str, neighbours: int, channels: int, tensors: Mapping[str, NDArray[Any]]
) -> KindWeights:
    """Check the shapes of one kind's weights and take them together."""
    first, head = tensors[f"{kind}.first"], tensors[f"{kind}.head"]
    units = len(first) if first.ndim == 2 else 0
    per_head, rest = divmod(len(head) if head.ndim == 2 else 0, channels)
    inputs = neighbours * channels + 1
    expected = {
        "first": (units, inputs),
        "first_bias": (LEVELS, units),
        "second": (units, units),
        "second_bias": (units, 1),
        "head": (channels * per_head, units),
        "head_bias": (channels * per_head, 1),
        "cross": (channels, per_head, channels),
        "output": (channels, 2, per_head),
        "output_bias": (channels, 2, 1),
        "linear": (channels, inputs),
        "linear_cross": (channels, 1, channels),
    }
    found = {name: tensors[f"{kind}.{name}"].shape for name in _NAMES}
    if found != expected or rest or not (1 <= units <= MAX_UNITS and 1 <= per_head <= MAX_UNITS):
        raise TablesError(
            f"{path}: {kind} weights of shapes {found} were found where {channels} channels ask "
            f"for {expected} and at most {MAX_UNITS} units; export the model again"
        )
    values = {name: torch.from_numpy(tensors[f"{kind}.{name}"].astype(np.int32)) for name in _NAMES}
    return KindWeights(**values)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.int32 if name.endswith("bias") else np.int16)
