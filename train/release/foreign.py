"""Tables for somebody else's autoencoder: a copy of it whose files need not bring their own.

The model stays as it is, byte for byte, and so does the id of its latents; beside it come an
entropy coder fitted to the latents of given images, codec.json and a card.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec import architectures, backbone
from codec.catalog import model_directory
from codec.checkpoint import DEFAULT_QUALITY, RELATIVE_50_STEP, ModelInfo, finalize, read_info
from codec.codes import codes_of
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.index_coder import IndexCoder
from codec.identity import CONFIG_FILE, ENTROPY_FILE, weight_files
from codec.images import find
from codec.outputs import atomic_folder
from train.release.coders import (
    check_channels,
    fit_channel_steps,
    fit_codes,
    refuse_quality,
)
from train.release.folders import refuse_folder
from train.release.latents import measure_codes, measure_images
from train.samples.sources import FileSource

MAX_SIDE = 1024
"""Pixels of an image that are looked at: most of these networks take an image as a whole."""


def export_tables(
    model: str,
    images: Sequence[str],
    output: Path,
    *,
    name: str | None = None,
    quality_50_step: float | None = None,
    default_quality: int | None = None,
    licence: str,
    force: bool = False,
) -> ModelInfo:
    """Write a model directory of an autoencoder with tables for its latents.

    Args:
        model: name, directory or hub id of any autoencoder that `Codec.from_pretrained` takes.
        images: files, folders or patterns; up to 256 of them, spread evenly, are encoded.
        output: the directory to write; complete or not there.
        name: the codec's name, by default the output folder's.
        quality_50_step: quantiser step of quality 50, in units of each channel's deviation.
        default_quality: the quality of files when none is asked for.
        licence: of the weights, as the card and codec.json state it.
        force: replace an existing directory.

    Returns:
        What codec.json says.

    Raises:
        ExportError: the output exists, the latents have too many channels, or a step or a quality
            was given for codes.
        LatentCodecError: the model or the images cannot be used.
    """
    refuse_folder(output, force=force)
    directory = model_directory(model)
    autoencoder = backbone.load_autoencoder(directory)
    codes = codes_of(autoencoder)
    step, quality = quality_50_step or RELATIVE_50_STEP, default_quality or DEFAULT_QUALITY
    coder: ChannelCoder | IndexCoder
    if codes is not None:
        refuse_quality(quality_50_step, default_quality)
        step = quality = None
        indices, _ = measure_codes(autoencoder, codes, _source(images), MAX_SIDE)
        coder, num_images = fit_codes(indices, codes), len(indices)
    else:
        check_channels(architectures.latent_channels(autoencoder.config))
        latents, _ = measure_images(autoencoder, _source(images), MAX_SIDE)
        coder, num_images = fit_channel_steps(latents, step), len(latents)
    with atomic_folder(output) as partial:
        copy_model(directory, partial)
        coder.save(partial / ENTROPY_FILE)
        info = finalize(
            partial,
            name=name or output.name,
            default_quality=quality,
            quality_50_step=step,
            license_name=licence,
            summary=_summary(autoencoder, num_images),
        )
        (partial / "README.md").write_text(_card(info, autoencoder, num_images), encoding="utf-8")
    return read_info(output)


def _source(images: Sequence[str]) -> FileSource:
    return FileSource("the given images", find(list(images)))


def copy_model(directory: Path, folder: Path) -> None:
    """Copy what makes up an autoencoder: configuration, weights and their index."""
    for path in (directory / CONFIG_FILE, *weight_files(directory)):
        shutil.copyfile(path, folder / path.name)
    for path in directory.glob("diffusion_pytorch_model.safetensors.index.json"):
        shutil.copyfile(path, folder / path.name)


def _summary(autoencoder: Any, num_images: int) -> str:
    return f"{_kind(autoencoder)}, tables fitted on {num_images} images"


def _kind(autoencoder: Any) -> str:
    factor = backbone.downscale_factor(autoencoder)
    channels = architectures.latent_channels(autoencoder.config)
    return f"{type(autoencoder).__name__}, f{factor}, {channels} channels"


def _quality(info: ModelInfo) -> str:
    if info.quality_50_step is None:
        return "- Files hold the codes exactly; there is no quality to choose."
    return (
        f"- Quality 50 is a step of {info.quality_50_step:g} of each channel's deviation over "
        "these images."
    )


def _card(info: ModelInfo, autoencoder: Any, num_images: int) -> str:
    """The model card as Markdown."""
    return f"""# {info.name}

Licence of the weights: {info.license_name}.

- Autoencoder: {_kind(autoencoder)}, unchanged (latents {info.latent_id}).
- Files: `latent-codec encode IMAGE -o OUT.lc --model DIR`.
- Latents: `codec.Codec.from_pretrained(DIR)`, or diffusers with DIR as a `vae`.
- Tables: fitted on the latents of {num_images} images, of each at most the middle
  {MAX_SIDE}x{MAX_SIDE} pixels.
{_quality(info)}
- Command: `latent-codec-train export --tables-for MODEL IMAGES -o DIR`.
"""
