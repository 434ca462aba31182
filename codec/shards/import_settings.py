"""What an import needs to know, from what a user says of a cache and from the model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.architectures import downscale_factor, latent_channels, read_config
from codec.checkpoint import ModelInfo
from codec.errors import LatentCodecError
from codec.latents import Scaling
from codec.packer import Packer
from codec.packing import read_file
from codec.shards.caches import cache_files, read_cache
from codec.shards.decoding import named_model, packer_of
from codec.shards.entries import ModelIds
from codec.shards.errors import ShardError
from codec.shards.forms import Content, ShardForm
from codec.shards.importing import ImportSettings, Pack, Posterior

UNKNOWN = "unknown"
_TRIED = 100  # files that are looked at for their number of channels


@dataclass(frozen=True, slots=True)
class Cache:
    """What a user says of a cache.

    Attributes:
        source: Folder or file.
        posterior: What it holds beside latents.
        scaled_by: Factor that latents were multiplied with.
        shifted_by: What was subtracted before.
        factor: f, where no model says it.
    """

    source: Path
    posterior: Posterior = Posterior.NONE
    scaled_by: float = 1.0
    shifted_by: float = 0.0
    factor: int = 8

    @property
    def scaling(self) -> Scaling:
        """How its latents were scaled."""
        return Scaling(self.shifted_by, self.scaled_by)


def prepare(
    cache: Cache,
    form: ShardForm,
    *,
    model: str | None,
    quality: float | None = None,
    shard_files: int,
) -> tuple[ImportSettings, Pack | None]:
    """Returns the settings of an import, and what makes `.lc` files where they are wanted.

    Raises:
        LatentCodecError: The model is unknown or damaged, the quality out of range, or no file
            tells the number of channels.
    """
    if model is None:
        settings = ImportSettings(
            form=form,
            model=ModelIds(UNKNOWN),
            latent_channels=_channels(cache),
            factor=cache.factor,
            # Readers give back what the cache held: nobody knows a better scale.
            scaling=cache.scaling,
            stored=cache.scaling,
            posterior=cache.posterior,
            shard_files=shard_files,
        )
        return settings, None
    info = named_model(model)
    config = read_config(info.directory)
    is_lc = form.content is Content.LC
    packer: Packer | None = None
    chosen: float | None = None
    step: int | None = None
    if is_lc:
        packer = packer_of(info)
        step = packer.step_units(quality, None)
        chosen = info.default_quality if quality is None else quality
    settings = ImportSettings(
        form=form,
        model=ModelIds(
            info.name, info.latent_id, info.coder_id if is_lc else None, info.decoder_id
        ),
        latent_channels=latent_channels(config),
        factor=downscale_factor(config),
        scaling=Scaling.of(config),
        stored=cache.scaling,
        posterior=cache.posterior,
        quality=chosen,
        step=step,
        shard_files=shard_files,
    )
    return settings, None if packer is None or step is None else _pack(packer, info, step)


def _pack(packer: Packer, info: ModelInfo, step: int) -> Pack:
    factor = downscale_factor(read_config(info.directory))

    def pack(raw_latents: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
        rows, columns = raw_latents.shape[1:]
        payload = packer.pack(raw_latents, step, (columns * factor, rows * factor))
        return payload, packer.unpack(read_file(payload))

    return pack


def _channels(cache: Cache) -> int:
    """Returns C of the first file that can be read."""
    for path in cache_files(cache.source)[:_TRIED]:
        try:
            channels = len(next(read_cache(path)).values)
        except (LatentCodecError, OSError):
            continue
        return channels if cache.posterior is Posterior.NONE else channels // 2
    raise ShardError(
        f"found no readable latents among the first files of {cache.source}, expected some; check "
        "them, or give --model"
    )
