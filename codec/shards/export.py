"""export-npy: one .npy file an image and dataset.json, as the trainers of EDM2 and SiT read them.

EDM2 (Karras et al. 2024, dataset_tool.py encode) stores the mean and the deviation of the
posterior, float32 (2 C, h, w), as 00000/img-mean-std-00000000.npy. Without a posterior a file holds
latents (C, h, w), 00000/img00000000.npy; or, where a trainer insists, a deviation of zero too.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.shards.errors import ShardError
from codec.shards.layout import durable_output
from codec.shards.manifest import Manifest
from codec.shards.samples import LOG_VARIANCE_BOUNDS
from codec.shards.sampling import DecodedRecord, decoded_records

LABELS_FILE = "dataset.json"


def export_npy(
    directory: Path,
    output: Path,
    *,
    scaled: bool = False,
    mean_std: bool = False,
    model: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Writes a dataset as .npy files.

    Args:
        directory: Of a finished dataset.
        output: Folder that is made, or is empty.
        scaled: Scale latents by the model's factors. Trainers of this layout scale by themselves.
        mean_std: Write a mean and a deviation also where the dataset has no posterior.
        model: Where to find the tables of `.lc` files, if not among the models at hand.
        advance: Is called after each file.

    Returns:
        How many files were written.

    Raises:
        LatentCodecError: The folder is not empty, a shard is damaged, or the model is not at hand.
        OSError: A file cannot be written.
    """
    manifest = Manifest.read(directory)
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise ShardError(f"found files in {output}, expected an empty folder; give another one")
    pairs = mean_std or manifest.form.posterior
    stem = "img-mean-std-" if pairs else "img"
    count = 0
    # Labels are all or nothing in this layout, so it must be known before the first of them.
    has_labels = manifest.labels is not None and (
        sum(manifest.labels.values()) == manifest.num_records > 0
    )
    label_ids = manifest.label_ids()

    def entries() -> Iterator[bytes]:
        nonlocal count
        for record in decoded_records(directory, manifest, model=model):
            number = f"{record.position:08d}"
            name = f"{number[:5]}/{stem}{number}.npy"
            path = output / name
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as stream:
                np.save(stream, _array(record, manifest, scaled, pairs))
            count += 1
            advance()
            if has_labels:
                assert record.info.label is not None  # or the labels' counts would not add up
                yield json.dumps([name, label_ids[record.info.label]]).encode()

    with durable_output(output / LABELS_FILE) as stream:
        stream.write(b'{"labels": ')
        stream.write(b"[" if has_labels else b"null")
        for index, entry in enumerate(entries()):
            stream.write((b"," if index else b"") + b"\n" + entry)
        stream.write(b"\n]}\n" if has_labels else b"}\n")
    return count


def _array(
    record: DecodedRecord, manifest: Manifest, scaled: bool, pairs: bool
) -> NDArray[np.float32]:
    shift, scale = (
        (manifest.scaling.shift_factor, manifest.scaling.scaling_factor) if scaled else (0.0, 1.0)
    )
    mean = ((record.raw_latents - shift) * scale).astype(np.float32)
    if not pairs:
        return mean
    deviation = np.zeros_like(mean)
    if record.log_variance is not None:
        deviation = np.exp(0.5 * np.clip(record.log_variance, *LOG_VARIANCE_BOUNDS)) * abs(scale)
    return np.concatenate([mean, deviation.astype(np.float32)])
