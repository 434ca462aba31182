"""import: latents that another program has cached become a dataset.

Legend: caches hold either raw latents, as a network makes them, or scaled ones, (raw - shift) *
scale; the dataset holds raw ones, so whoever imports says which they are.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.console import EXPECTED_ERRORS, error_sentence
from codec.latents import Scaling
from codec.shards import fields
from codec.shards.caches import cache_files, read_cache
from codec.shards.entries import ModelIds
from codec.shards.errors import ShardError
from codec.shards.export import LABELS_FILE
from codec.shards.forms import Content, LatentData, ShardForm
from codec.shards.layout import (
    JOB_FILE,
    MANIFEST_FILE,
    committed_shards,
    durable_output,
    is_committed,
    remove_leftovers,
)
from codec.shards.manifest import Manifest, finish_dataset
from codec.shards.records import ItemError, RecordInfo
from codec.shards.writer import ShardWriter

SHARD_FILES = 1024
RAW = Scaling(shift_factor=0.0, scaling_factor=1.0)

# Makes the `.lc` file of raw latents (C, h, w), and gives back what it decodes to.
Pack = Callable[[NDArray[np.float32]], tuple[bytes, NDArray[np.float32]]]


class Posterior(StrEnum):
    """What a cache holds of an image."""

    NONE = "none"
    MOMENTS = "moments"
    MEAN_STD = "mean-std"


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What decides what an import makes of a cache.

    Attributes:
        form: Of the shards.
        model: Whose latents they are.
        latent_channels: C.
        factor: f.
        scaling: The model's own, which readers apply.
        stored: How the cache's latents were scaled; 0 and 1 for raw ones.
        posterior: Whether channels C to 2 C are a log variance or a deviation.
        quality: Of `.lc` files.
        step: Likewise.
        shard_files: Files of the cache that make a shard.
    """

    form: ShardForm
    model: ModelIds
    latent_channels: int
    factor: int
    scaling: Scaling
    stored: Scaling = RAW
    posterior: Posterior = Posterior.NONE
    quality: float | None = None
    step: int | None = None
    shard_files: int = SHARD_FILES

    def to_job(self, source: Path) -> dict[str, Any]:
        """Returns the content of job.json, which `finish_dataset` takes too."""
        from codec import __version__  # asks the installed package, which takes a moment

        return {
            "created_by": f"latent-codec {__version__}",
            "model": self.model.to_json(),
            "latent_channels": self.latent_channels,
            "factor": self.factor,
            "scaling": _scaling_to_json(self.scaling),
            **self.form.to_json(),
            "quality": self.quality,
            "step": self.step,
            "preprocessing": {
                "imported_from": source.name,
                "stored_scaling": _scaling_to_json(self.stored),
                "stored_posterior": self.posterior.value,
            },
            "shard_files": self.shard_files,
        }


def import_caches(
    source: Path,
    directory: Path,
    settings: ImportSettings,
    *,
    pack: Pack | None = None,
    advance: Callable[[int], None] = lambda files: None,
) -> Manifest:
    """Writes the latents in a folder of .npy, .npz and .safetensors files as a dataset.

    Files are taken in sorted order; an image's key is its path, with a number where the file holds
    several. dataset.json of the EDM2 layout gives labels. A file that cannot be read is an error in
    errors.jsonl. An import that was stopped goes on where it was.

    Args:
        source: Folder or file.
        directory: Of the dataset.
        settings: See there.
        pack: For `.lc` files.
        advance: Is called with the number of files that are done.

    Raises:
        LatentCodecError: There are no files, or `directory` holds something else.
        OSError: The disk is full, or does not take the files.
    """
    assert (pack is not None) == (settings.form.content is Content.LC)
    files = cache_files(source)
    root = source if source.is_dir() else source.parent
    job = settings.to_job(source)
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, {**job, "files": len(files), "fingerprint": _fingerprint(files, root)})
    remove_leftovers(directory)
    labels = read_labels(root / LABELS_FILE)
    num_shards = -(-len(files) // settings.shard_files)
    for shard in range(num_shards):
        unit = files[shard * settings.shard_files : (shard + 1) * settings.shard_files]
        if not is_committed(directory, shard):
            errors: list[ItemError] = []
            with ShardWriter(directory, shard, settings.form) as writer:
                for path in unit:
                    _import_file(writer, path, root, settings, pack, labels, errors)
                writer.commit(errors)
        advance(len(unit))
    return finish_dataset(directory, job, num_shards=num_shards)


def read_labels(path: Path) -> Mapping[str, str]:
    """Returns the labels in the dataset.json of the EDM2 layout; none where there is no file.

    Raises:
        ShardError: It is something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), list | None):
        raise ShardError(f'{path}: found something else, expected {{"labels": [...]}}')
    labels: dict[str, str] = {}
    for entry in content.get("labels") or ():
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ShardError(f"{path}: found {str(entry)[:60]}, expected a file name and a label")
        labels[entry[0]] = str(entry[1])
    return labels


def _import_file(
    writer: ShardWriter,
    path: Path,
    root: Path,
    settings: ImportSettings,
    pack: Pack | None,
    labels: Mapping[str, str],
    errors: list[ItemError],
) -> None:
    name = path.relative_to(root).as_posix()
    label = labels.get(name)
    try:
        for cached in read_cache(path):
            key = f"{name}#{cached.name}" if cached.name else name
            raw_latents, log_variance = _raw(path, cached.values, settings)
            payload = None
            if pack is not None:
                payload, raw_latents = pack(raw_latents)
            rows, columns = raw_latents.shape[1:]
            size = (columns * settings.factor, rows * settings.factor)
            info = RecordInfo(key, name, *size, crop=(0, 0, *size), size=size, label=label)
            if not settings.form.posterior:
                log_variance = None
            writer.add(info, LatentData(raw_latents, payload, log_variance))
    except EXPECTED_ERRORS as error:
        if not writer.is_open:  # the disk did not take it: not the file's fault
            raise
        errors.append(ItemError(name, name, error_sentence(error)))


def _raw(
    path: Path, values: NDArray[np.float32], settings: ImportSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Returns raw latents and log variance of what a cache holds."""
    channels = settings.latent_channels
    has_posterior = settings.posterior is not Posterior.NONE
    expected = 2 * channels if has_posterior else channels
    if len(values) != expected:
        raise ShardError(
            f"{path}: found {len(values)} channels, expected {expected}; say with --posterior what "
            "the file holds, and with --model whose latents they are"
        )
    stored = settings.stored
    raw_latents = values[:channels] / np.float32(stored.scaling_factor) + np.float32(
        stored.shift_factor
    )
    if not has_posterior:
        return raw_latents, None
    spread = values[channels:]
    if settings.posterior is Posterior.MOMENTS:
        return raw_latents, spread
    deviation = np.maximum(np.abs(spread / np.float32(stored.scaling_factor)), np.float32(1e-15))
    return raw_latents, (2 * np.log(deviation)).astype(np.float32)


def _fingerprint(files: Sequence[Path], root: Path) -> str:
    """Returns a hash of the names and sizes of all files."""
    digest = hashlib.sha256()
    for path in files:
        entry = [path.relative_to(root).as_posix(), path.stat().st_size]
        digest.update(fields.compact(entry) + b"\n")
    return digest.hexdigest()


def _claim(directory: Path, job: Mapping[str, Any]) -> None:
    """Writes job.json, or compares it with the one of the import that goes on here.

    Raises:
        ShardError: Something else is here.
    """
    path = directory / JOB_FILE
    if not path.exists():
        if (directory / MANIFEST_FILE).exists() or committed_shards(directory):
            raise ShardError(f"found another dataset in {directory}, expected an empty folder")
        with durable_output(path) as stream:
            stream.write(fields.readable(job))
        return
    stated = fields.parse_object(path.read_bytes())
    differing = sorted(
        name for name in {*stated, *job} - {"created_by"} if stated.get(name) != job.get(name)
    )
    if differing:
        name = differing[0]
        raise ShardError(
            f"found {name} = {stated.get(name)!r} in {path}, expected {job.get(name)!r} as now; "
            "give the same options and source, or another folder"
        )


def _scaling_to_json(scaling: Scaling) -> dict[str, float]:
    return {"shift_factor": scaling.shift_factor, "scaling_factor": scaling.scaling_factor}
