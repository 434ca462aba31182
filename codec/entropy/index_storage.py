"""entropy.safetensors of a learned model of indices: integer tensors only.

N is the number of a codebook, from 0 for the coarsest; KIND is root, diagonal or edge.

| tensor | type, shape | content |
| --- | --- | --- |
| N.codes | uint16 (K) | the code of each leaf |
| N.values | int16 (K, E) | of the code at each leaf, units of 2**-7 |
| N.nodes, N.node_bias | int16 (K - 1, R), int32 (K - 1) | weights of the decisions |
| N.KIND.NAME | int16 weights, int32 biases | see `IndexKindWeights` |
| frequencies | uint16 (352) | of a yes, by log odds |
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec.entropy.index_network import (
    KINDS,
    LEVELS,
    CodebookWeights,
    IndexKindWeights,
    num_inputs,
)
from codec.entropy.storage import read_tensors, tensor_names, write_tensors
from codec.entropy.tables import TablesError
from codec.header import MAX_CODEBOOKS, MAX_CODES

INDEX_VERSION = "indices-1"
MAX_UNITS = 1024  # of each layer, and values of a code

_NAMES = tuple(part.name for part in fields(IndexKindWeights))
_FREQUENCIES = "frequencies"
_DTYPES = {"codes": np.uint16, "values": np.int16, "nodes": np.int16, "node_bias": np.int32}

Tensors = Mapping[str, NDArray[Any]]


def write_index_file(
    path: str | os.PathLike[str],
    codebooks: tuple[CodebookWeights, ...],
    frequencies: NDArray[np.int64],
) -> None:
    """Writes what an `IndexCoder` holds; equal ones give equal bytes."""
    tensors = {_FREQUENCIES: frequencies.astype(np.uint16)}
    for number, codebook in enumerate(codebooks):
        parts: dict[str, NDArray[Any]] = {
            "codes": codebook.codes,
            "values": codebook.values.T,
            "nodes": codebook.nodes,
            "node_bias": codebook.node_bias,
        }
        for kind, weights in zip(KINDS, codebook.kinds, strict=True):
            parts |= {f"{kind}.{name}": getattr(weights, name).numpy() for name in _NAMES}
        for name, values in parts.items():
            tensors[f"{number}.{name}"] = np.ascontiguousarray(values.astype(_dtype(name)))
    write_tensors(path, INDEX_VERSION, tensors)


def read_index_file(
    path: str | os.PathLike[str],
) -> tuple[tuple[CodebookWeights, ...], NDArray[np.int64]]:
    """Reads what `write_index_file` wrote.

    Raises:
        TablesError: The file is missing, malformed or of another version.
    """
    path = Path(path)
    names = tensor_names(path)
    count = max(1, sum(f"{number}.codes" in names for number in range(MAX_CODEBOOKS)))
    parts = [*_DTYPES, *(f"{kind}.{name}" for kind in KINDS for name in _NAMES)]
    dtypes: dict[str, np.dtype[Any]] = {_FREQUENCIES: np.dtype(np.uint16)}
    dtypes |= {f"{number}.{name}": _dtype(name) for number in range(count) for name in parts}
    tensors = read_tensors(path, INDEX_VERSION, dtypes)
    codebooks: list[CodebookWeights] = []
    for number in range(count):
        own = {name: tensors[f"{number}.{name}"] for name in parts}
        num_coarse = len(codebooks[-1].values) if codebooks else 0
        codebooks.append(_codebook(f"{path}: codebook {number}", own, num_coarse))
    return tuple(codebooks), tensors[_FREQUENCIES].astype(np.int64)


def _codebook(where: str, tensors: Tensors, num_coarse: int) -> CodebookWeights:
    """Checks the shapes of one codebook's tensors and takes them together."""
    num_codes = tensors["codes"].size
    num_values, num_features = (
        tensors[name].shape[-1] if tensors[name].ndim else 0 for name in ("values", "nodes")
    )
    expected: dict[str, tuple[int, ...]] = {
        "codes": (num_codes,),
        "values": (num_codes, num_values),
        "nodes": (num_codes - 1, num_features),
        "node_bias": (num_codes - 1,),
    }
    sizes = [num_values, num_features]
    for place, kind in enumerate(KINDS):
        units = tensors[f"{kind}.first_bias"].shape[-1] if tensors[f"{kind}.first_bias"].ndim else 0
        sizes.append(units)
        expected |= {
            f"{kind}.first": (units, num_inputs(place, num_values, num_coarse)),
            f"{kind}.first_bias": (LEVELS, units),
            f"{kind}.second": (num_features, units),
            f"{kind}.second_bias": (num_features, 1),
        }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    in_bounds = all(1 <= size <= MAX_UNITS for size in sizes) and 2 <= num_codes <= MAX_CODES
    if found != expected or not in_bounds:
        raise TablesError(
            f"{where}: tensors of shapes {found} were found where {expected} and at most "
            f"{MAX_CODES} codes and {MAX_UNITS} units are expected; export the model again"
        )
    kinds = tuple(
        IndexKindWeights(
            **{
                name: torch.from_numpy(tensors[f"{kind}.{name}"].astype(np.int32))
                for name in _NAMES
            }
        )
        for kind in KINDS
    )
    return CodebookWeights(
        codes=tensors["codes"].astype(np.int64),
        values=np.ascontiguousarray(tensors["values"].T.astype(np.int32)),
        nodes=tensors["nodes"].astype(np.int32),
        node_bias=tensors["node_bias"].astype(np.int32),
        kinds=kinds,
    )


def _dtype(name: str) -> np.dtype[Any]:
    last = name.rpartition(".")[2]
    default = np.int32 if last.endswith("bias") else np.int16
    return np.dtype(_DTYPES.get(last, default))
