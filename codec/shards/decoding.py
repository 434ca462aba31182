"""`.lc` files of a dataset to raw latents, several at a time, by the entropy coder alone.

The network is not loaded: a worker of a training run decodes with a few megabytes of tables. Only a
model of codes is opened once, for its codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from codec import identity
from codec.architectures import (
    codebook_sizes,
    downscale_factor,
    latent_channels,
    read_config,
)
from codec.bitstream import FILE_TABLES_ID, Header, LatentFile, OneStep
from codec.catalog import find_model, model_directory
from codec.checkpoint import CODEC_FILE, ModelInfo, foreign_info, read_info
from codec.entropy import LatentCoder
from codec.identity import ENTROPY_FILE, ModelError
from codec.images import MAX_PIXELS
from codec.packer import AnyCoder, Packer, load_any_coder
from codec.packing import IndicesCoder, RawLatents, read_file, unpack_raw

Symbols = NDArray[np.int32]


@runtime_checkable
class BatchCoder(Protocol):
    """A coder that is quicker at several payloads of one shape and step than at each alone."""

    def decode_batch(
        self, payloads: Sequence[bytes], shape: tuple[int, int, int], step: int
    ) -> list[Symbols]:
        """Returns the symbols of each payload."""
        ...


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Stands for a coder whose work is done, so that the checks of a file stay in one place."""

    symbols: Symbols

    def decode(self, payload: bytes, shape: tuple[int, int, int], step: int) -> Symbols:
        """Returns the symbols."""
        del payload, shape, step
        return self.symbols


class LatentDecoder:
    """Decodes the `.lc` files of one dataset.

    Coders are loaded when a file first asks for them, in the process that decodes.
    """

    def __init__(self, latent_channels: int, factor: int, model: str | None = None) -> None:
        """Prepares to decode.

        Args:
            latent_channels: C of the dataset.
            factor: Its f.
            model: Name or directory of the model; None to look for it among the models at hand.
        """
        self._latent_channels = latent_channels
        self._factor = factor
        self._model = model
        self._coders: dict[tuple[str, str], AnyCoder | Packer | None] = {}

    def decode(self, bodies: Sequence[bytes]) -> list[RawLatents]:
        """Returns the raw latents, float32 (C, h, w), of each file.

        Raises:
            LatentCodecError: A file is damaged, or its model is not at hand.
        """
        files = [read_file(body) for body in bodies]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, file in enumerate(files):
            header = file.header
            ids, how = (header.latent_id, header.coder_id), header.quantizer
            groups.setdefault((*ids, how if isinstance(how, OneStep) else place), []).append(place)
        found: dict[int, RawLatents] = {}
        for places in groups.values():
            group = [files[place] for place in places]
            found.update(zip(places, self._decode_group(group), strict=True))
        return [found[place] for place in range(len(files))]

    def _decode_group(self, files: Sequence[LatentFile]) -> list[RawLatents]:
        """Decodes files of one model, shape and step."""
        header = files[0].header
        coder = self._coder(header)
        if isinstance(coder, Packer):
            return [coder.unpack(file) for file in files]
        how, several = header.quantizer, _as_batch_coder(coder)
        if several is not None and isinstance(how, OneStep) and self._is_sound(header):
            payloads = [file.payload for file in files]
            symbols = several.decode_batch(payloads, how.shape, how.step)
            done = [cast(LatentCoder, _Decoded(one)) for one in symbols]
        else:
            assert not isinstance(coder, IndicesCoder)
            done = [cast(LatentCoder, coder)] * len(files)
        return [
            unpack_raw(file, coder=one, latent_channels=self._latent_channels, factor=self._factor)
            for file, one in zip(files, done, strict=True)
        ]

    def _is_sound(self, header: Header) -> bool:
        """Whether a header's sizes may be believed; `unpack_raw` says what is wrong with others."""
        rows, columns = (-(-side // self._factor) for side in (header.height, header.width))
        return (
            isinstance(header.quantizer, OneStep)
            and header.quantizer.shape == (self._latent_channels, rows, columns)
            and header.width * header.height <= MAX_PIXELS
        )

    def _coder(self, header: Header) -> AnyCoder | Packer | None:
        ids = (header.latent_id, header.coder_id)
        if ids not in self._coders:
            self._coders[ids] = self._load(header)
        return self._coders[ids]

    def _load(self, header: Header) -> AnyCoder | Packer | None:
        is_continuous = hasattr(header.quantizer, "shape")
        if header.coder_id == FILE_TABLES_ID and is_continuous:
            return None  # all that is needed is in the file
        info = self._find(header)
        if not is_continuous:
            return packer_of(info)
        path = info.directory / ENTROPY_FILE
        if header.coder_id != info.coder_id:
            path = identity.earlier_coder(info.directory, header.coder_id)
        if identity.tables_id(path) != header.coder_id:
            raise ModelError(
                f"found other tables in {path} than its ids say; fetch the model again"
            )
        return load_any_coder(path)

    def _find(self, header: Header) -> ModelInfo:
        given = named_model(self._model) if self._model is not None else None
        if given is not None and given.decodes(header.latent_id, header.coder_id):
            return given
        return find_model(header.latent_id, header.coder_id, given)


def _as_batch_coder(coder: object) -> BatchCoder | None:
    return coder if isinstance(coder, BatchCoder) else None


def named_model(name_or_dir: str) -> ModelInfo:
    """Returns what is known of a model that a user names; may hash its weights.

    Raises:
        UnknownModelError: No model has that name.
        ModelError: It is damaged.
    """
    directory = model_directory(name_or_dir)
    has_codec = (directory / CODEC_FILE).is_file()
    return read_info(directory) if has_codec else foreign_info(directory)


def packer_of(info: ModelInfo) -> Packer:
    """Returns the packer of a model; of its network at most the codebooks are loaded, and stay.

    Raises:
        LatentCodecError: The model is incomplete or damaged.
    """
    config = read_config(info.directory)
    stated = info if (info.directory / CODEC_FILE).is_file() else None
    multiple = factor = downscale_factor(config)
    codes = None
    if codebook_sizes(config):
        from codec.backbone import load_autoencoder
        from codec.codes import codes_of

        autoencoder = load_autoencoder(info.directory)
        multiple, codes = getattr(autoencoder, "multiple", factor), codes_of(autoencoder)
    return Packer(
        class_name=str(config["_class_name"]),
        stated=stated,
        directory=info.directory,
        coder=load_any_coder(info.directory / ENTROPY_FILE) if stated is not None else None,
        codes=codes,
        latent_channels=latent_channels(config),
        factor=factor,
        multiple=multiple,
    )
