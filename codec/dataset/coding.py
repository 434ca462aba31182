"""Latents as the records of a shard: `.lc` files, or the numbers themselves.

Only the entropy coder is needed here, never the network.
"""

from collections import defaultdict
from typing import Protocol

import numpy as np

from codec.architectures import downscale_factor, latent_channels, read_config
from codec.checkpoint import CODEC_FILE, ModelInfo
from codec.codes import Codes
from codec.dataset.encoder import EncodedImage, ModelSpec, model_codes
from codec.errors import LatentCodecError
from codec.identity import ENTROPY_FILE
from codec.packer import Packer, load_any_coder
from codec.shards.forms import Content, LatentData, ShardForm
from codec.shards.records import ItemError, RecordInfo

Coded = tuple[list[tuple[RecordInfo, LatentData]], list[ItemError]]


class Coding(Protocol):
    """Makes records of latents."""

    def code(self, records: list[tuple[RecordInfo, EncodedImage]]) -> Coded:
        """Returns the records in the same order, and an error for each that cannot be made."""


class RawCoding:
    """The latents as they are; the writer rounds them to the shard's dtype."""

    def code(self, records: list[tuple[RecordInfo, EncodedImage]]) -> Coded:
        """See `Coding`."""
        return [
            (info, LatentData(image.raw_latents, None, image.log_variance))
            for info, image in records
        ], []


class FileCoding:
    """An `.lc` file of each image, the same bytes as `Codec.compress` makes of its pixels.

    Args:
        packer: The model's.
        step: Quantiser step in units of 2**-16; 0 for a model of codes.
    """

    def __init__(self, packer: Packer, step: int) -> None:
        self._packer = packer
        self._step = step

    def code(self, records: list[tuple[RecordInfo, EncodedImage]]) -> Coded:
        """See `Coding`; latents that no file holds become an error."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for position, (_, image) in enumerate(records):
            by_shape[image.raw_latents.shape].append(position)
        found: dict[int, LatentData | str] = {}
        for positions in by_shape.values():
            found.update(zip(positions, self._together(records, positions), strict=True))
        coded, errors = [], []
        for position, (info, _) in enumerate(records):
            data = found[position]
            if isinstance(data, str):
                errors.append(ItemError(info.key, info.source, f"{info.source}: {data}"))
            else:
                coded.append((info, data))
        return coded, errors

    def _together(
        self, records: list[tuple[RecordInfo, EncodedImage]], positions: list[int]
    ) -> list[LatentData | str]:
        """Codes images of one shape."""
        chosen = [records[position] for position in positions]
        try:
            return list(self._pack(chosen))
        except LatentCodecError as error:
            if len(positions) == 1:
                return [" ".join(str(error).split())]
        return [one for position in positions for one in self._together(records, [position])]

    def _pack(self, chosen: list[tuple[RecordInfo, EncodedImage]]) -> list[LatentData]:
        packer = self._packer
        if packer.codes is not None:
            return [
                LatentData(image.raw_latents, packer.pack_indices(image.indices, info.size))
                for info, image in chosen
                if image.indices is not None
            ]
        raw_latents = np.stack([image.raw_latents for _, image in chosen])
        sizes = [info.size for info, _ in chosen]
        packed = packer.pack_batch_exactly(raw_latents, self._step, sizes)
        return [LatentData(exact, payload) for payload, exact in packed]


def make_packer(info: ModelInfo, codes: Codes | None) -> Packer:
    """Returns the packer of a model, without its network.

    Args:
        info: Of the model.
        codes: Its codebooks, if it has some.
    """
    directory = info.directory
    config = read_config(directory)
    has_coder = (directory / CODEC_FILE).is_file()
    factor = downscale_factor(config)
    packer = Packer(
        class_name=str(config["_class_name"]),
        stated=info if has_coder else None,
        directory=directory,
        coder=load_any_coder(directory / ENTROPY_FILE) if has_coder else None,
        codes=codes,
        latent_channels=latent_channels(config),
        factor=factor,
        multiple=factor * max(codes.strides if codes else (1,)),
    )
    vars(packer)["info"] = info  # else each process would hash the weights of a foreign model again
    return packer


def make_coding(model: ModelSpec, form: ShardForm, step: int) -> Coding:
    """Returns what makes the records of a form."""
    if form.content is not Content.LC:
        return RawCoding()
    return FileCoding(make_packer(model.info, model_codes(model.info.directory)), step)
