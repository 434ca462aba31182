"""From a run of an entropy model to a codec: the frozen autoencoder's files and a new coder.

The autoencoder stays as it is, byte for byte, and so do the ids of its latents and decoder. The
coder that it had stays beside the new one under its id, so that files made with it can be read.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codec import quantizer
from codec.checkpoint import ModelInfo, finalize, read_info
from codec.codes import Codes
from codec.entropy.context_coder import ContextCoder
from codec.entropy.index_coder import IndexCoder
from codec.identity import ENTROPY_FILE, earlier_coder
from codec.outputs import atomic_folder
from codec.packer import load_any_coder
from train.entropy.frozen import Frozen, open_codec
from train.entropy.frozen_codes import open_codes
from train.entropy.index_integers import integer_index_coder
from train.entropy.index_model import IndexModel
from train.entropy.integers import fit_coder
from train.entropy.model import ContextModel
from train.entropy.sections import CoderConfig, EntropyConfig, IndexConfig
from train.release.card import read_records
from train.release.coders import refuse_quality
from train.release.entropy_card import EntropyFacts, entropy_card
from train.release.folders import ExportError
from train.release.foreign import copy_model
from train.release.latents import measure_codes, measure_images
from train.report import read_json_record
from train.samples.pool import open_sources
from train.state import fill, load_checkpoint

FIT_QUALITIES = tuple(np.linspace(1, 100, 12).tolist())
"""Evenly spaced, so that their steps are log-spaced."""
SUFFIX = ", context model"
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class NewCoder:
    """A coder and what files made with it are like.

    Attributes:
        frozen: the autoencoder.
        coder: of its latents or codes.
        quality_50_step: quantiser step of quality 50; None for codes.
        default_quality: likewise.
    """

    frozen: Frozen
    coder: ContextCoder | IndexCoder
    quality_50_step: float | None
    default_quality: int | None


def export_entropy(
    config: CoderConfig,
    run_dir: Path,
    checkpoint: Path,
    output: Path,
    *,
    name: str | None = None,
    quality_50_step: float | None = None,
    default_quality: int | None = None,
    licence: str | None = None,
    best: bool = False,
) -> ModelInfo:
    """Write a codec with the entropy model of a run; arguments are those of `export_run`.

    Args:
        config: of the run.
        run_dir: the run's output folder.
        checkpoint: whose averaged weights are taken.
        output: the directory to write.
        name: the codec's name, by default the output folder's.
        quality_50_step: quantiser step of quality 50; by default that of the autoencoder's codec.
        default_quality: likewise.
        licence: likewise.
        best: whether the checkpoint is the best one.

    Raises:
        ExportError: the autoencoder is not the one that the run was on, or it has codes and a step
            or a quality was given.
    """
    if isinstance(config, IndexConfig):
        refuse_quality(quality_50_step, default_quality)
        made = _index_coder(config, run_dir, checkpoint)
    else:
        made = _context_coder(config, run_dir, checkpoint, quality_50_step, default_quality)
    frozen, before = made.frozen, made.frozen.info
    with atomic_folder(output) as partial:
        _copy(frozen, partial)
        made.coder.save(partial / ENTROPY_FILE)
        info = finalize(
            partial,
            name=name or output.name,
            default_quality=made.default_quality,
            quality_50_step=made.quality_50_step,
            license_name=licence or before.license_name,
            summary=_summary(frozen),
            accepts=before.accepts,
        )
        earlier_coder(partial, info.coder_id).unlink(missing_ok=True)  # none stands beside itself
        facts = EntropyFacts(config, read_records(run_dir, checkpoint, best=best), info)
        card = frozen.directory / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else None
        (partial / CARD).write_text(entropy_card(text, facts), encoding="utf-8")
    assert (info.latent_id, info.decoder_id) == (before.latent_id, before.decoder_id)
    return read_info(output)


def advised_config(info: ModelInfo) -> str | None:
    """The configuration that trains an entropy model for a codec; None if it has one."""
    coder = load_any_coder(info.directory / ENTROPY_FILE)
    if isinstance(coder, IndexCoder):  # from a run, or learned in passing
        is_of_run = info.summary.endswith(SUFFIX)
        return None if is_of_run else "configs/entropy/indices-vq-f8.yaml"
    return None if isinstance(coder, ContextCoder) else "configs/entropy/context-f8d4.yaml"


def averaged_twin(config: EntropyConfig, checkpoint: Path) -> ContextModel:
    """The context model with the averaged weights of a checkpoint."""
    tensors = load_checkpoint(checkpoint).tensors
    num_channels = len(tensors["model"]["deviations"])
    settings = config.entropy
    model = ContextModel([1.0] * num_channels, settings.units, settings.head_units)
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    return model.eval()


def averaged_index_twin(config: IndexConfig, checkpoint: Path, codes: Codes) -> IndexModel:
    """The model of codes with the averaged weights of a checkpoint."""
    tensors = load_checkpoint(checkpoint).tensors
    model = IndexModel(codes.sizes, config.indices)
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    return model.eval()


def _context_coder(
    config: EntropyConfig,
    run_dir: Path,
    checkpoint: Path,
    quality_50_step: float | None,
    default_quality: int | None,
) -> NewCoder:
    """The integer coder of latents; its tables are counted on latents of training images."""
    frozen = open_codec(config.entropy.codec)
    _check_same(frozen, run_dir, f"entropy.codec {config.entropy.codec}")
    model = averaged_twin(config, checkpoint)
    step = quality_50_step or frozen.quality_50_step(model.deviations.tolist())
    latents, _ = measure_images(
        frozen.codec.autoencoder, open_sources(config.data.images(frozen.factor))
    )
    steps = [quantizer.step_from_quality(quality, step) for quality in FIT_QUALITIES]
    quality = default_quality or frozen.info.default_quality
    return NewCoder(frozen, fit_coder(model, latents, steps), step, quality)


def _index_coder(config: IndexConfig, run_dir: Path, checkpoint: Path) -> NewCoder:
    """The integer coder of codes; its tables are counted on codes of training images."""
    frozen = open_codes(config.indices.codec)
    _check_same(frozen, run_dir, f"indices.codec {config.indices.codec}")
    model = averaged_index_twin(config, checkpoint, frozen.codes)
    source = open_sources(config.data.images(frozen.factor))
    images, _ = measure_codes(frozen.codec.autoencoder, frozen.codes, source)
    return NewCoder(frozen, integer_index_coder(model, images), None, None)


def _check_same(frozen: Frozen, run_dir: Path, setting: str) -> None:
    trained_on = read_json_record(run_dir, "data.json")["latent_id"]
    if frozen.info.latent_id != trained_on:
        raise ExportError(
            f"found latents {frozen.info.latent_id} in {setting}, "
            f"expected those that the run was on, {trained_on}: put that autoencoder back"
        )


def _copy(frozen: Frozen, folder: Path) -> None:
    """Copy the autoencoder, its licence, and the coders that it has and had."""
    copy_model(frozen.directory, folder)
    for path in frozen.directory.glob("LICENSE*"):
        shutil.copyfile(path, folder / path.name)
    if frozen.has_coder:
        info = frozen.info
        for coder_id in info.earlier_coders:
            source = earlier_coder(frozen.directory, coder_id)
            shutil.copyfile(source, earlier_coder(folder, coder_id))
        present = frozen.directory / ENTROPY_FILE
        shutil.copyfile(present, earlier_coder(folder, info.coder_id))


def _summary(frozen: Frozen) -> str:
    if frozen.has_coder:
        return frozen.info.summary.removesuffix(SUFFIX) + SUFFIX
    kind = type(frozen.codec.autoencoder).__name__
    return f"{kind}, f{frozen.factor}, {frozen.codec.latent_channels} channels{SUFFIX}"
