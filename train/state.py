"""Checkpoints of a run: complete, told apart from damaged ones, rotated.

A checkpoint is a folder `checkpoint-<images seen>`: tensors as NAME.safetensors, other state in
state.pt, progress.json, and manifest.json with the size and CRC-32 of each file. It is written
under a temporary name, reaches the disk and is then renamed, so that a kill leaves no half of one;
what is damaged later does not fit its manifest and is passed over. The weights with the best
held-out figures are kept likewise in `best`.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codec.console import print_warning
from codec.errors import LatentCodecError
from train.plain_json import json_text

PREFIX = "checkpoint-"
BEST = "best"
PARTIAL = ".partial"
"""Being written; never read."""
OLD = ".old"
"""Being replaced; read only where a kill left nothing else."""
MANIFEST = "manifest.json"
BLOCK_BYTES = 1 << 22

_NAME = re.compile(rf"{PREFIX}(\d+)({re.escape(OLD)})?")


class ResumeError(LatentCodecError):
    """A run cannot be continued from what is there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    images_seen: int
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds, on the CPU.

    Attributes:
        tensors: "model", the trained parameters and persistent buffers, and "ema", the averaged
            parameters; by name.
        states: of optimizers, discriminators and controllers; empty in `best`.
        progress: where the run was.
    """

    tensors: dict[str, dict[str, Tensor]]
    states: dict[str, dict[str, Any]]
    progress: Progress


def save_checkpoint(
    run_dir: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Mapping[str, Any]],
    progress: Progress,
    *,
    total_limit: int,
) -> Path:
    """Write a checkpoint and delete the oldest ones beyond `total_limit`.

    Args:
        run_dir: the run's folder.
        tensors: each entry becomes NAME.safetensors.
        states: tensors, numbers, texts and containers of them alone: nothing else can be read
            back without running code.
        progress: the images seen name the folder.
        total_limit: checkpoints kept, the new one among them.
    """
    final = run_dir / f"{PREFIX}{progress.images_seen:09d}"
    with _replacing(final) as partial:
        _write(partial, tensors, states, progress)
    _rotate(run_dir, final, total_limit)
    return final


def save_best(
    run_dir: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    figures: Mapping[str, float],
    progress: Progress,
) -> Path:
    """Put weights into `best` with the held-out figures that they have, in place of the last.

    A figure that is not finite stands there as null.
    """
    final = run_dir / BEST
    with _replacing(final) as partial:
        (partial / "figures.json").write_text(json_text(figures), encoding="utf-8")
        _write(partial, tensors, {}, progress)
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    found: dict[int, Path] = {}
    for path in sorted(run_dir.glob(f"{PREFIX}*")):  # checkpoint-8 stands before checkpoint-8.old
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return [found[images] for images in sorted(found)]


def latest_good(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are whole; damaged ones are announced and passed over."""
    return _first_good(reversed(list_checkpoints(run_dir)))


def best_checkpoint(run_dir: Path) -> Path | None:
    """The folder of the weights with the best held-out figures, if there is a whole one."""
    folders = (run_dir / BEST, run_dir / f"{BEST}{OLD}")
    return _first_good(folder for folder in folders if folder.is_dir())


def read_best(run_dir: Path) -> dict[str, float] | None:
    """The held-out figures of the best weights so far, without those that were not finite.

    None where there are no such weights.
    """
    folder = best_checkpoint(run_dir)
    if folder is None:
        return None
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return {name: value for name, value in figures.items() if value is not None}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `latest_good` or `best_checkpoint` found."""
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    states = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return Checkpoint(tensors, states, read_progress(path))


def read_progress(path: Path) -> Progress:
    """Where the run was when it wrote a checkpoint."""
    return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))


@torch.no_grad()
def fill(state: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Copy stored tensors into a model's, in place.

    Args:
        state: the model's tensors by name.
        stored: tensors of a checkpoint.
        path: of the checkpoint, for the message.

    Raises:
        ResumeError: names or shapes differ; nothing was copied.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != found:
        name = min(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n))
        raise ResumeError(
            f"{path} holds a model of another shape than the configuration asks for (found {name} "
            f"{found.get(name, 'missing')}, expected {shapes.get(name, 'no such tensor')}): resume "
            "with the run's own config.yaml, or choose another run.output_dir"
        )
    for name, tensor in state.items():
        tensor.copy_(stored[name])


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `final` once it is on the disk.

    If `final` was there before, then at every moment it or `final.old` is complete.
    """
    partial, old = (final.with_name(final.name + ending) for ending in (PARTIAL, OLD))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> None:
    assert all(_is_plain(state) for state in states.values()), "torch.load would refuse this"
    for name, named in tensors.items():
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}
        save_file(plain, folder / f"{name}.safetensors")
    torch.save({name: dict(state) for name, state in states.items()}, folder / "state.pt")
    (folder / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    manifest = {
        path.name: {"size": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _rotate(run_dir: Path, newest: Path, total_limit: int) -> None:
    """Delete all but the newest checkpoint and `total_limit` - 1 in front of it.

    What has seen more images than the newest is damaged: resuming passed it over.
    """
    checkpoints = list_checkpoints(run_dir)
    place = checkpoints.index(newest)
    kept = checkpoints[max(0, place + 1 - total_limit) : place + 1]
    for path in run_dir.glob(f"{PREFIX}*"):
        if path not in kept and path.is_dir():
            shutil.rmtree(path)


def _first_good(folders: Iterable[Path]) -> Path | None:
    for folder in folders:
        damage = _damage(folder)
        if damage is None:
            return folder
        if os.environ.get("RANK", "0") == "0":  # once, however many processes there are
            print_warning(f"{folder} is passed over: {damage}")
    return None


def _damage(folder: Path) -> str | None:
    """What does not fit the manifest, or None if all is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, stated in manifest.items():
            size = (folder / name).stat().st_size
            if size != stated["size"]:
                return f"{name} has {size} bytes, expected {stated['size']}"
            if _crc32(folder / name) != stated["crc32"]:
                return f"{name} holds other bytes than were written"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except (ValueError, AttributeError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    return None


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
