"""Original checkpoints as files: what of them is the VAE, read without running anything in them.

A file is safetensors, or a pickle that torch reads with `weights_only=True`: tensors and plain
values, no code. What belongs to the rest of a full Stable Diffusion checkpoint is not read.
"""

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from codec.conversion.errors import ConversionError
from codec.identity import stored_tensors
from codec.outputs import atomic_output

SAFETENSORS = ".safetensors"
_PREFIXES = ("", "first_stage_model.", "vae.")
# Beside the network of an original first stage's own checkpoint: its losses and averages.
_ASIDE = ("loss.", "model_ema.", "discriminator.")
_FIRST = "encoder.conv_in.weight"
STATISTICS = (
    *("scaling_factor", "shift_factor", "latents_mean", "latents_std"),
    *("force_upcast", "sample_size"),
)
"""Entries of config.json that an original file has no place for."""
_NOTE = "latent_codec"  # where we keep them
_FACTOR = "scale_factor"  # where LDM keeps its factor, measured on the first batch


@dataclass(frozen=True, slots=True)
class SingleFile:
    """The VAE of an original checkpoint.

    Attributes:
        tensors: By their original names, without a prefix.
        statistics: What the file says of `STATISTICS`.
        prefix: What stood before the names.
        num_left_out: Tensors of the file that are not the VAE's.
    """

    tensors: dict[str, Tensor]
    statistics: dict[str, Any]
    prefix: str = ""
    num_left_out: int = 0


def read_single_file(path: Path) -> SingleFile:
    """Reads the VAE of a checkpoint.

    Raises:
        ConversionError: It is no checkpoint, holds no VAE, or objects other than tensors.
        ModelError: A safetensors file is damaged.
    """
    if path.suffix.lower() == SAFETENSORS:
        return _read_safetensors(path)
    return _read_pickle(path)


def write_single_file(path: Path, content: SingleFile) -> None:
    """Writes a checkpoint whole or not at all: safetensors or a pickle, as the suffix says."""
    note = {_NOTE: json.dumps(content.statistics)}
    tensors = {name: tensor.contiguous() for name, tensor in content.tensors.items()}
    with atomic_output(path) as stream:
        if path.suffix.lower() == SAFETENSORS:
            stream.write(save(tensors, metadata={"format": "pt", **note}))
        else:
            torch.save({"state_dict": tensors, **note}, stream)


def _read_safetensors(path: Path) -> SingleFile:
    names = {tensor.name for tensor in stored_tensors(path)}
    prefix, wanted = _choose(names, path)
    with safe_open(path, framework="pt") as file:
        tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in wanted}
        statistics = _read_note((file.metadata() or {}).get(_NOTE), path)
        if _FACTOR in names and not statistics:
            statistics = _of_factor(file.get_tensor(_FACTOR), path)
    return SingleFile(tensors, statistics, prefix, len(names) - len(wanted))


def _read_pickle(path: Path) -> SingleFile:
    content = _load_pickle(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ConversionError(f"found no tensors in {path}, expected a checkpoint of a VAE")
    found = {name: one for name, one in state.items() if isinstance(one, Tensor)}
    prefix, wanted = _choose(found.keys(), path)
    tensors = {name.removeprefix(prefix): found[name].detach() for name in wanted}
    statistics = _read_note(content.get(_NOTE), path)
    if _FACTOR in found and not statistics:
        statistics = _of_factor(found[_FACTOR], path)
    return SingleFile(tensors, statistics, prefix, len(found) - len(wanted))


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            # of the older kind's pickle protocol, which is of no concern to a user
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # the newer kind is mapped, so the rest of a full checkpoint is never read
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConversionError(
            f"found more than tensors in {path} ({reason}), expected tensors alone: nothing else "
            "is unpickled, so save its state_dict as safetensors first"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError):
        raise ConversionError(
            f"found damage in {path}, expected a checkpoint as torch.save writes it; fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise ConversionError(f"found no tensors in {path}, expected a checkpoint of a VAE")
    return content


def _choose(names: Any, path: Path) -> tuple[str, list[str]]:
    """Returns the prefix of the VAE's names, and its names."""
    for prefix in _PREFIXES:
        if f"{prefix}{_FIRST}" in names:
            aside = tuple(f"{prefix}{part}" for part in _ASIDE)
            found = [one for one in names if one.startswith(prefix) and not one.startswith(aside)]
            return prefix, sorted(one for one in found if one != _FACTOR)
    raise ConversionError(
        f"found no tensor {_FIRST} in {path}, bare or after 'first_stage_model.' or 'vae.', "
        "expected a VAE of LDM or Stable Diffusion"
    )


def _read_note(note: object, path: Path) -> dict[str, Any]:
    """Returns the statistics that `write_single_file` put beside the tensors."""
    if note is None:
        return {}
    try:
        content = json.loads(note) if isinstance(note, str) else None
    except ValueError:
        content = None
    known = isinstance(content, dict) and all(
        key in STATISTICS and _is_statistic(key, value) for key, value in content.items()
    )
    if not isinstance(content, dict) or not known:
        raise ConversionError(
            f"found a note in {path} that latent-codec did not write; convert the model again"
        )
    return content


def _is_statistic(key: str, value: object) -> bool:
    if key == "force_upcast":
        return isinstance(value, bool)
    if key == "sample_size":
        return isinstance(value, int) and 0 < value < 1 << 16
    if key in ("latents_mean", "latents_std"):
        return value is None or (isinstance(value, list) and all(map(_is_number, value)))
    is_absent = value is None and key == "shift_factor"
    return is_absent or (_is_number(value) and (value != 0 or key == "shift_factor"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _of_factor(factor: Tensor, path: Path) -> dict[str, Any]:
    value = float(factor) if factor.numel() == 1 else math.nan
    if not math.isfinite(value) or value == 0:
        raise ConversionError(
            f"found a {_FACTOR} in {path} that is no number but 0; give --scaling-factor"
        )
    return {"scaling_factor": value}


def sides_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the sides of tensors, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
