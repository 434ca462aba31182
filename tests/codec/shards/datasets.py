"""Small datasets that several test files write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import quantizer
from codec.checkpoint import ModelInfo
from codec.packing import read_file
from codec.shards.decoding import named_model, packer_of
from codec.shards.forms import Container, Content, LatentData, ShardForm
from codec.shards.manifest import Manifest, finish_dataset
from codec.shards.records import ItemError, RecordInfo
from codec.shards.writer import ShardWriter

CHANNELS = 4
RAW_FORM = ShardForm(Container.TAR, Content.FLOAT32)
SHIFT, SCALE = 0.25, 0.5

Latents = NDArray[np.float32]


def latents_of(number: int, grid: tuple[int, int] = (6, 5)) -> Latents:
    """Raw latents of a record, different for each."""
    rng = np.random.default_rng(number)
    return (rng.normal(0, 2, (CHANNELS, *grid)) + number % 7).astype(np.float32)


def info_of(number: int, grid: tuple[int, int] = (6, 5)) -> RecordInfo:
    rows, columns = grid
    size = (8 * columns, 8 * rows)
    return RecordInfo(
        key=f"folder/{number:04d}.jpg",
        source=f"folder/{number:04d}.jpg",
        width=size[0] + 10,
        height=size[1],
        crop=(5, 0, size[0] + 5, size[1]),
        size=size,
        flip=number % 2 == 1,
        label=f"class {number % 3}",
        caption=f"picture {number}" if number % 4 else None,
    )


def job_of(form: ShardForm, info: ModelInfo | None = None, **others: Any) -> dict[str, Any]:
    model: dict[str, Any] = {"name": "nobody's"}
    if info is not None:
        model = {
            "name": info.name,
            "latent_id": info.latent_id,
            "coder_id": info.coder_id if form.content is Content.LC else None,
            "decoder_id": info.decoder_id,
        }
    return {
        "created_by": "tests",
        "model": model,
        "latent_channels": CHANNELS,
        "factor": 8,
        "scaling": {"shift_factor": SHIFT, "scaling_factor": SCALE},
        **form.to_json(),
        "preprocessing": {"size": 48},
        **others,
    }


def write_raw(
    directory: Path,
    counts: Sequence[int],
    form: ShardForm = RAW_FORM,
    *,
    grids: Sequence[tuple[int, int]] = ((6, 5),),
    errors: Sequence[ItemError] = (),
    records_per_member: int = 4,
) -> Manifest:
    """Writes shards of raw latents; record n has `latents_of(n)`."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with ShardWriter(directory, shard, form, records_per_member=records_per_member) as writer:
            for _ in range(count):
                grid = grids[number % len(grids)]
                latents = latents_of(number, grid)
                spread = latents / 10 if form.posterior else None
                writer.add(info_of(number, grid), LatentData(latents, log_variance=spread))
                number += 1
            writer.commit(errors if shard == 0 else ())
    return finish_dataset(directory, job_of(form))


def write_lc(
    directory: Path,
    model_dir: Path,
    counts: Sequence[int],
    container: Container = Container.TAR,
    grids: Sequence[tuple[int, int]] = ((6, 5),),
) -> Manifest:
    """Writes shards of `.lc` files; record n has `latents_of(n)`, quantised."""
    directory.mkdir(parents=True, exist_ok=True)
    info = named_model(str(model_dir))
    packer, form = packer_of(info), ShardForm(container)
    step = quantizer.step_from_size(0.5)
    number = 0
    for shard, count in enumerate(counts):
        with ShardWriter(directory, shard, form, records_per_member=4) as writer:
            for _ in range(count):
                record = info_of(number, grids[number % len(grids)])
                raw_latents = latents_of(number, grids[number % len(grids)])
                payload = packer.pack(raw_latents, step, record.size)
                data = LatentData(packer.unpack(read_file(payload)), payload)
                writer.add(record, data)
                number += 1
            writer.commit()
    return finish_dataset(directory, job_of(form, info, quality=50.0, step=step))
