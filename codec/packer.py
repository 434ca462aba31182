"""Packer: what one model's encoder gives to the bytes of an `.lc` file and back, by its own coder.

It knows the ids, steps, codebooks and tables of a model, and leaves the network to others.
Legend: C latent channels, h w cells of the latent grid, f downscale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec import identity, quantizer
from codec.bitstream import Chunk, ColorMode, Header, LatentFile
from codec.checkpoint import ModelInfo, foreign_info
from codec.codes import Codes
from codec.entropy import LatentCoder, load_coder
from codec.entropy.channel_coder import CHANNELS_VERSION, ChannelCoder
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_storage import INDEX_VERSION
from codec.entropy.index_tables import Indices
from codec.entropy.storage import read_version
from codec.errors import LatentCodecError
from codec.identity import ModelError
from codec.packing import (
    IndicesCoder,
    RawLatents,
    choose_symbols,
    pack_indices,
    pack_raw,
    pack_symbols,
    pack_together,
    read_file,
    unpack_indices,
    unpack_raw,
)
from codec.quantizer import QuantizerError
from codec.rate_control import Wish, largest_that_fits, trade_at

AnyCoder = LatentCoder | ChannelCoder | IndicesCoder


def load_any_coder(path: Path) -> AnyCoder:
    """Reads the coder of continuous latents or of indices that a safetensors file holds.

    Raises:
        TablesError: The file is missing, malformed or of an unknown version.
    """
    version = read_version(path)
    if version == CHANNELS_VERSION:
        return ChannelCoder.load(path)
    if version == INDEX_VERSION:
        return IndexCoder.load(path)
    return load_coder(path)


class MissingCoderError(LatentCodecError):
    """The model has no ids, so it makes latents but no files."""


@dataclass(frozen=True)
class Packer:
    """Files of one model.

    Attributes:
        class_name: Of the autoencoder.
        stated: What codec.json says; None without one.
        directory: Where the model lies; None for one that was handed over without a place.
        coder: Its entropy coder; None for tables that travel in the files.
        codes: Its codebooks; None for continuous latents.
        latent_channels: C.
        factor: f.
        multiple: What image sides are padded to a multiple of, in pixels.
    """

    class_name: str
    stated: ModelInfo | None
    directory: Path | None
    coder: AnyCoder | None
    codes: Codes | None
    latent_channels: int
    factor: int
    multiple: int

    def __post_init__(self) -> None:
        found: tuple[int, ...] = ()
        if isinstance(self.coder, IndicesCoder):
            found = tuple(self.coder.codebook_sizes)
        expected = self.codes.sizes if self.codes else ()
        has_quality = self.stated is not None and self.stated.quality_50_step is not None
        if self.stated and (found != expected or has_quality == bool(expected)):
            raise ModelError(
                f"found tables and a quality in {self.stated.directory} that are not those of an "
                f"autoencoder with {len(expected) or 'no'} codebooks; export the model again"
            )

    @cached_property
    def info(self) -> ModelInfo | None:
        """Ids and default quality; None where there is no directory to compute them from."""
        if self.stated is None and self.directory is not None:
            return foreign_info(self.directory)
        return self.stated

    @property
    def known(self) -> ModelInfo:
        """The info of a model that makes files.

        Raises:
            MissingCoderError: It has none.
        """
        if self.info is None:
            raise MissingCoderError(
                f"found an autoencoder without a directory ({self.class_name}), so it makes "
                "latents but no files; expected one that Codec.from_pretrained loaded, after "
                "save_pretrained"
            )
        return self.info

    def step_units(self, quality: float | None, step: float | None) -> int:
        """Returns the step that a user asks for, in units of 2**-16; 0 for a model of codes.

        Raises:
            MissingCoderError: The model makes no files.
            QuantizerError: Both were given, one is out of range, or one was given although the
                model has codes.
        """
        info = self.known
        if info.quality_50_step is None or info.default_quality is None:
            if quality is not None or step is not None:
                raise QuantizerError(
                    f"found a {'quality' if step is None else 'step'} for {info.name}, expected "
                    "none: it has codes, which files hold exactly"
                )
            return 0
        if step is None:
            chosen = info.default_quality if quality is None else quality
            return quantizer.step_from_quality(chosen, info.quality_50_step)
        if quality is not None:
            raise QuantizerError("found both a quality and a step, expected one of them")
        return quantizer.step_from_size(step)

    def check(self, wish: Wish) -> None:
        """Refuses a wish that this model cannot meet, before any work.

        Raises:
            MissingCoderError: The model makes no files.
            QuantizerError: A value is out of range, or one was given although the model has codes.
        """
        if wish.has_target and self.known.quality_50_step is None:
            raise QuantizerError(
                f"found a target size for {self.known.name}, expected none: it has codes, which "
                "files hold exactly"
            )
        self.step_units(wish.quality, wish.step)

    def pack_wish(
        self,
        raw_latents: RawLatents,
        wish: Wish,
        size: tuple[int, int],
        color_mode: ColorMode = ColorMode.RGB,
        chunks: Sequence[Chunk] = (),
    ) -> bytes:
        """Packs raw latents (C, h, w) as large as a user wishes; see `Wish`.

        Raises:
            RateError: No file of these latents is as small as the target.
        """
        if not wish.has_target:
            units = self.step_units(wish.quality, wish.step)
            return self.pack(raw_latents, units, size, color_mode, chunks)

        def pack(quality: float) -> bytes:
            return self.pack(raw_latents, self.step_units(quality, None), size, color_mode, chunks)

        return largest_that_fits(pack, wish.limit(*size))

    def pack(
        self,
        raw_latents: RawLatents,
        step: int,
        size: tuple[int, int],
        color_mode: ColorMode = ColorMode.RGB,
        chunks: Sequence[Chunk] = (),
    ) -> bytes:
        """Packs raw latents (C, h, w); codes become their indices. See `codec.packing.pack_raw`."""
        if self.codes is not None:
            self.codes.grids(*raw_latents.shape[1:])  # refuses what does not fit
            indices = self.codes.to_indices(raw_latents)
            return self.pack_indices(indices, size, color_mode, chunks)
        assert not isinstance(self.coder, IndicesCoder)
        return pack_raw(
            raw_latents,
            info=self.known,
            coder=self.coder,
            step=step,
            trade=self._trade(step),
            size=size,
            color_mode=color_mode,
            chunks=chunks,
        )

    def pack_batch(
        self, raw_latents: NDArray[np.float32], step: int, sizes: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Packs raw latents (N, C, h, w) of colour images, each into the file that `pack` makes.

        Args:
            raw_latents: Of all images.
            step: As for `pack`.
            sizes: (width, height) of each image in pixels.
        """
        coder = self.coder
        if self.codes is not None or coder is None or isinstance(coder, ChannelCoder):
            return [
                self.pack(one, step, size) for one, size in zip(raw_latents, sizes, strict=True)
            ]
        assert not isinstance(coder, IndicesCoder)
        return pack_together(
            list(raw_latents),
            info=self.known,
            coder=coder,
            step=step,
            sizes=sizes,
            trade=self._trade(step),
        )

    def pack_batch_exactly(
        self, raw_latents: NDArray[np.float32], step: int, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[bytes, RawLatents]]:
        """As `pack_batch`, with the latents (C, h, w) that each file decodes to beside it."""
        coder = self.coder
        if self.codes is not None or coder is None or isinstance(coder, ChannelCoder):
            files = self.pack_batch(raw_latents, step, sizes)
            return [(data, self.unpack(read_file(data))) for data in files]
        assert not isinstance(coder, IndicesCoder)
        trade = self._trade(step)
        images = [choose_symbols(one, coder, step, trade) for one in raw_latents]
        files = pack_symbols(images, info=self.known, coder=coder, step=step, sizes=sizes)
        exact = (quantizer.dequantize(symbols, step) for symbols in images)
        return list(zip(files, exact, strict=True))

    def pack_indices(
        self,
        indices: Indices,
        size: tuple[int, int],
        color_mode: ColorMode = ColorMode.RGB,
        chunks: Sequence[Chunk] = (),
    ) -> bytes:
        """Packs the indices of codes; see `codec.packing.pack_indices`."""
        assert self.codes is not None
        assert self.coder is None or isinstance(self.coder, IndicesCoder)
        rows, columns = (side * self.codes.strides[0] for side in indices[0].shape)
        return pack_indices(
            indices,
            info=self.known,
            coder=self.coder,
            grids=self.codes.grids(rows, columns),
            size=size,
            color_mode=color_mode,
            chunks=chunks,
        )

    def decodes(self, header: Header) -> bool:
        """Whether this model may decode a file; hashes its weights where nothing states the ids."""
        return self.info is not None and self.info.decodes(header.latent_id, header.coder_id)

    def unpack(self, file: LatentFile) -> RawLatents:
        """Returns the raw latents (C, h, w) of a file; see `codec.packing.unpack_raw`."""
        coder = self._coder_of(file.header)
        if self.codes is None:
            assert not isinstance(coder, IndicesCoder)
            return unpack_raw(
                file, coder=coder, latent_channels=self.latent_channels, factor=self.factor
            )
        assert coder is None or isinstance(coder, IndicesCoder)
        cells = self.multiple // self.factor
        rows, columns = (
            -(-side // self.multiple) * cells for side in (file.header.height, file.header.width)
        )
        grids = self.codes.grids(rows, columns)
        return self.codes.to_latents(unpack_indices(file, coder=coder, grids=grids))

    def _trade(self, step: int) -> float:
        """What a bit may cost at a step; see `codec.rate_control`."""
        assert self.known.quality_50_step is not None
        quality = quantizer.quality_of_step(step, self.known.quality_50_step)
        return trade_at(round(quality, 2))  # a step is whole: that of quality 50 gives 49.9999

    def _coder_of(self, header: Header) -> AnyCoder | None:
        """Returns the coder that a file was made with, which may be one that the model had before.

        Raises:
            TablesError: Its tables are malformed.
        """
        earlier = self.stated.earlier_coders if self.stated else ()
        if self.stated is None or header.coder_id not in earlier:
            return self.coder
        return load_any_coder(identity.earlier_coder(self.stated.directory, header.coder_id))
