"""decode-shards: some records of a dataset as pictures, and a contact sheet of them all."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from codec import backbone
from codec.catalog import UnknownModelError, known_models
from codec.images import Pixels, save
from codec.pipeline import Codec
from codec.shards.errors import ShardError
from codec.shards.manifest import Manifest
from codec.shards.sampling import DecodedRecord, decoded_records

SHEET_FILE = "contact-sheet.png"
MAX_SHEET = 400  # pictures on the sheet
THUMBNAIL = 160  # pixels, its longer side
_TEXT_HEIGHT = 14
_LETTERS = 26  # that fit below a thumbnail


def decode_shards(
    directory: Path,
    output: Path,
    *,
    limit: int | None,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Writes pictures of records, spread evenly over the dataset, and a contact sheet.

    Args:
        directory: Of a finished dataset.
        output: Folder; files in it are replaced.
        limit: How many records; None for all.
        model: The model to decode with; None to look for the one that made the latents.
        device: See `Codec.from_pretrained`.
        dtype: Likewise.
        advance: Is called after each picture.

    Returns:
        How many pictures were written.

    Raises:
        LatentCodecError: A shard is damaged, the model is not at hand, or does not fit.
        OSError: A file cannot be written.
    """
    manifest = Manifest.read(directory)
    codec = load_model(manifest, model, device=device, dtype=dtype)
    output.mkdir(parents=True, exist_ok=True)
    thumbnails: list[tuple[str, PIL.Image.Image]] = []
    count = 0
    for record in decoded_records(directory, manifest, limit=limit, model=model):
        pixels = picture(codec, record)
        save(pixels, output / f"{record.position:08d}-{_safe(record.info.key)}.png")
        if len(thumbnails) < MAX_SHEET:
            small = PIL.Image.fromarray(pixels)
            small.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
            thumbnails.append((record.info.key, small))
        count += 1
        advance()
    if thumbnails:
        save(contact_sheet(thumbnails), output / SHEET_FILE)
    return count


def load_model(
    manifest: Manifest,
    model: str | None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> Codec:
    """Loads the model that decodes a dataset's latents.

    Raises:
        UnknownModelError: It is not at hand, or nobody knows which it is.
        ShardError: The model that was given makes other latents.
    """
    latent_id = manifest.model.latent_id
    if model is None:
        found = (info for info in known_models() if latent_id in info.accepts)
        info = next(found, None)
        if info is None:
            raise UnknownModelError(
                f"found latents {latent_id} of {manifest.model.name}, whose model is not at hand; "
                "give its directory with --model DIR, or list its folder in LATENT_CODEC_MODELS"
            )
        return Codec.from_pretrained(info.directory, device=device, dtype=dtype)
    codec = Codec.from_pretrained(model, device=device, dtype=dtype)
    accepts = codec.info.accepts if codec.info is not None else ()
    if latent_id is not None and latent_id not in accepts:
        raise ShardError(
            f"found latents {latent_id} of {manifest.model.name}, expected "
            f"{' or '.join(accepts)}, which {codec.name} decodes; give another model"
        )
    if codec.latent_channels != manifest.latent_channels:
        raise ShardError(
            f"found latents of {manifest.latent_channels} channels, expected "
            f"{codec.latent_channels} for {codec.name}; give another model"
        )
    return codec


@torch.no_grad()
def picture(codec: Codec, record: DecodedRecord) -> Pixels:
    """Decodes one record to uint8 (H, W, 3), without padding."""
    pixels = backbone.decode_pixels(codec.autoencoder, record.raw_latents)
    width, height = record.info.size
    return np.ascontiguousarray(pixels[:height, :width])


def contact_sheet(thumbnails: Sequence[tuple[str, PIL.Image.Image]]) -> Pixels:
    """Lays pictures out with their keys below, uint8 (H, W, 3)."""
    columns = max(1, math.ceil(math.sqrt(len(thumbnails) * 1.3)))
    rows = -(-len(thumbnails) // columns)
    cell = THUMBNAIL + 8
    sheet = PIL.Image.new("RGB", (columns * cell, rows * (cell + _TEXT_HEIGHT)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for place, (key, small) in enumerate(thumbnails):
        left, top = place % columns * cell, place // columns * (cell + _TEXT_HEIGHT)
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        shown = key if len(key) <= _LETTERS else "..." + key[3 - _LETTERS :]
        # Pillow's own font has Latin letters alone.
        draw.text((left + 4, top + cell), shown.encode("ascii", "replace").decode(), fill="black")
    return np.asarray(sheet)


def _safe(key: str) -> str:
    """Returns a key as part of a file name: no separators, not too long, valid text."""
    text = key.encode("utf-8", "replace").decode()
    return re.sub(r"[^\w.-]+", "_", text)[-60:]
