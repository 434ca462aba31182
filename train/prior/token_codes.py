"""Images as tokens: encoded once at the start of a run, or read from a finished dataset.

Legend: N sequences, T tokens of an image.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from codec.architectures import codebook_sizes, read_config
from codec.catalog import model_directory
from codec.prior.token_layout import TokenLayout
from codec.prior.tokens import layout_of
from codec.shards import LatentDataset
from train.entropy.encoding import encode_images
from train.entropy.frozen import FrozenCodecError
from train.entropy.frozen_codes import FrozenCodes, open_codes
from train.held_out import held_out_files
from train.prior.latents import Squares, class_numbers
from train.prior.token_sections import TokenPriorConfig
from train.samples.pool import open_sources
from train.samples.sources import DataError, FileSource, ImageSource


@dataclass(frozen=True, slots=True, eq=False)
class TokenSet:
    """Images as tokens.

    Attributes:
        tokens: int32 (N, T); a mirrored copy stands behind its image.
        labels: int64 (N,) class numbers, -1 where there is none.
        class_names: by number.
        layout: what the tokens stand for.
        num_images: that can be used, copies not counted.
        unreadable: why images cannot be read, by their keys.
        fingerprint: which images these are, see `ImagePool.fingerprint`, and their classes.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    layout: TokenLayout
    num_images: int
    unreadable: dict[str, str]
    fingerprint: dict[str, Any]


def open_token_codec(name: str, device: torch.device | None = None) -> FrozenCodes:
    """Load the autoencoder that `tokens.codec` names.

    Raises:
        FrozenCodecError: its latents are continuous.
        LatentCodecError: there is no such model, or it is damaged.
    """
    if not codebook_sizes(read_config(model_directory(name))):
        raise FrozenCodecError(
            f"found continuous latents in tokens.codec {name}, expected an autoencoder with codes "
            "(vq, fsq or vq2); a section prior, in place of tokens, trains a diffusion prior of "
            "continuous ones"
        )
    return open_codes(name, device)


def training_tokens(
    config: TokenPriorConfig, frozen: FrozenCodes, accelerator: Accelerator
) -> TokenSet:
    """The codes that a configuration names; the processes of the run share the encoding.

    Raises:
        DataError: there are none, or not of one size, or classes are wanted where there are none.
    """
    if config.data.shards is not None:
        return _read_shards(config, config.data.shards, frozen)
    pool = open_sources(config.data.images(labels=config.tokens.labels))
    size, flip = config.data.size, config.data.flip
    layout = layout_of(frozen.codec, (size, size), len(pool.classes))
    encoded = _encode(pool, layout, config, frozen, accelerator, flip=flip)
    listed = pool.fingerprint()
    text = f"{listed['sha256']} {frozen.info.latent_id} {size} {flip}"
    return TokenSet(
        tokens=encoded.tokens,
        labels=np.repeat([pool.label(i) for i in encoded.numbers], 2 if flip else 1),
        class_names=pool.classes,
        layout=layout,
        num_images=len(encoded.numbers),
        unreadable=encoded.unreadable,
        fingerprint={
            **listed,
            "class_names": pool.classes,
            "latent_id": frozen.info.latent_id,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
    )


def held_out_tokens(
    config: TokenPriorConfig, data: TokenSet, frozen: FrozenCodes, accelerator: Accelerator
) -> TokenSet | None:
    """The held-out images that a configuration names, or None.

    Raises:
        DataError: there is no such image, none can be read, or one is of an unknown class.
    """
    run = config.run
    if run.validation_folder is None:
        return None
    files = held_out_files(run.validation_folder, run.validation_names, run.validation_images)
    labels = class_numbers(files, data.class_names).numpy()
    source = FileSource(f"held-out images of {run.validation_folder}", files)
    encoded = _encode(source, data.layout, config, frozen, accelerator, flip=False)
    return TokenSet(
        tokens=encoded.tokens,
        labels=labels[encoded.numbers],
        class_names=data.class_names,
        layout=data.layout,
        num_images=len(encoded.numbers),
        unreadable=encoded.unreadable,
        fingerprint={},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """Images that could be read: their numbers in the source, and tokens."""

    tokens: NDArray[np.int32]
    numbers: list[int]
    unreadable: dict[str, str]


def _encode(
    source: ImageSource,
    layout: TokenLayout,
    config: TokenPriorConfig,
    frozen: FrozenCodes,
    accelerator: Accelerator,
    *,
    flip: bool,
) -> _Encoded:
    """Encode the middles of images."""
    squares = Squares(source, config.data.size)
    found = encode_images(frozen, squares, range(len(squares)), accelerator, flip=flip)
    if not found.latents:
        first = next(iter(found.unreadable.values()), "there is none")
        raise DataError(f"none of the images of {source.name} can be read; {first}")
    return _Encoded(
        tokens=_stack([layout.to_tokens(frozen.indices(planes)) for planes in found.latents]),
        numbers=[i for i in range(len(squares)) if squares.key(i) not in found.unreadable],
        unreadable=found.unreadable,
    )


def _read_shards(config: TokenPriorConfig, directory: str, frozen: FrozenCodes) -> TokenSet:
    """All codes of a finished dataset; files hold them exactly."""
    dataset = LatentDataset(
        directory, shuffle=False, raw=True, rank=0, world_size=1, model=str(frozen.directory)
    )
    manifest = dataset.manifest
    if manifest.model.latent_id not in frozen.info.accepts:
        raise DataError(
            f"found latents {manifest.model.latent_id} in {directory}, expected those of "
            f"{frozen.info.name}, {frozen.info.latent_id}: set tokens.codec to the codec that made "
            "the dataset"
        )
    side = -(-config.data.size // frozen.codec.multiple) * frozen.codec.multiple // frozen.factor
    if list(manifest.grids) != [(side, side)]:
        found = ", ".join(f"{rows}x{columns}" for rows, columns in manifest.grids)
        raise DataError(
            f"found latents of {found} cells in {directory}, expected {side}x{side} alone, as "
            f"data.size {config.data.size} has: make the dataset with --size {config.data.size}, "
            "or change data.size"
        )
    ids = dataset.label_ids if config.tokens.labels else {}
    if config.tokens.labels and not ids:
        raise DataError(
            f"found no labels in {directory}, expected them as tokens.labels is true: set it to "
            "false, or make the dataset from images with classes"
        )
    size = (config.data.size, config.data.size)
    layout = layout_of(frozen.codec, size, len(ids))
    tokens, labels = [], []
    for record in dataset:
        indices = frozen.codes.to_indices(record["latents"].numpy())
        tokens.append(layout.to_tokens(indices))
        labels.append(ids.get(record["label"], -1))
    class_names = tuple(sorted(ids, key=ids.__getitem__))
    digest = hashlib.sha256()
    for shard in manifest.shards:
        digest.update(f"{shard.file} {shard.sha256}\n".encode())
    return TokenSet(
        tokens=_stack(tokens),
        labels=np.array(labels),
        class_names=class_names,
        layout=layout,
        num_images=len(tokens),
        unreadable={},
        fingerprint={
            "num_images": len(tokens),
            "sources": [directory],
            "class_names": class_names,
            "latent_id": manifest.model.latent_id,
            "sha256": digest.hexdigest(),
        },
    )


def _stack(tokens: Sequence[NDArray[np.int64]]) -> NDArray[np.int32]:
    return np.stack(tokens).astype(np.int32)
