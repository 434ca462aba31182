"""The held-out images of an entropy model's run, encoded."""

from typing import Any

from accelerate import Accelerator

from train.entropy.encoding import encode_images
from train.entropy.frozen import Frozen
from train.entropy.sections import CoderConfig
from train.held_out import held_out_files
from train.samples.factors import FactorImages
from train.samples.sources import DataError, FileSource, ImageSource


def encode_held_out(
    config: CoderConfig, frozen: Frozen, accelerator: Accelerator
) -> list[Any] | None:
    """Latents or codes of the held-out images that a configuration names; None if it names none.

    Raises:
        DataError: there is no such image, or none can be read.
    """
    source = _source(config, frozen)
    if source is None:
        return None
    found = encode_images(frozen, source, range(len(source)), accelerator)
    if not found.latents:
        raise DataError(f"none of the images of {source.name} can be read: check run")
    return found.latents


def _source(config: CoderConfig, frozen: Frozen) -> ImageSource | None:
    """Held-out images; for a run on rendered ones those that follow them."""
    run, data = config.run, config.data
    if run.validation_folder is not None:
        files = held_out_files(run.validation_folder, run.validation_names, run.validation_images)
        return FileSource(f"held-out images of {run.validation_folder}", files)
    if data.factors:
        size = data.images(frozen.factor).crop_size
        return FactorImages(count=run.validation_images, size=size, start=data.factors)
    return None
