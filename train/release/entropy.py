"""From a run of an entropy model to a codec: the frozen autoencoder's files and a new coder.

The autoencoder stays as it is, byte for byte, and so do the ids of its latents and decoder. The
coder that it had stays beside the new one under its id, so that files made with it can be read.
"""

import shutil
from pathlib import Path

import numpy as np

from codec import quantizer
from codec.checkpoint import CODEC_FILE, ModelInfo, finalize, read_info
from codec.entropy.context_coder import ContextCoder
from codec.identity import ENTROPY_FILE, earlier_coder
from codec.packer import load_any_coder
from train.entropy.frozen import FrozenCodec, open_codec
from train.entropy.integers import fit_coder
from train.entropy.model import ContextModel
from train.entropy.sections import EntropyConfig
from train.release.card import read_records
from train.release.entropy_card import EntropyFacts, entropy_card
from train.release.folders import ExportError, new_folder
from train.release.foreign import copy_model
from train.release.latents import measure_images
from train.report import read_json_record
from train.samples.pool import open_sources
from train.state import fill, load_checkpoint

FIT_QUALITIES = tuple(np.linspace(1, 100, 12).tolist())
"""Evenly spaced, so that their steps are log-spaced."""
SUFFIX = ", context model"
CARD = "README.md"


def export_entropy(
    config: EntropyConfig,
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
    """Write a codec with the context model of a run; arguments are those of `export_run`.

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
        ExportError: the autoencoder is not the one that the run was on.
    """
    frozen = open_codec(config.entropy.codec)
    _check_same(frozen, run_dir, config)
    model = averaged_twin(config, checkpoint)
    before, deviations = frozen.info, model.deviations.tolist()
    step = quality_50_step or frozen.quality_50_step(deviations)
    coder = _fit(config, frozen, model, step)
    with new_folder(output) as partial:
        partial.mkdir()
        _copy(frozen, partial)
        coder.save(partial / ENTROPY_FILE)
        info = finalize(
            partial,
            name=name or output.name,
            default_quality=default_quality or before.default_quality,
            quality_50_step=step,
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


def lacks_context_model(info: ModelInfo) -> bool:
    """Whether a codec of continuous latents has a simpler coder."""
    if info.quality_50_step is None:
        return False
    return not isinstance(load_any_coder(info.directory / ENTROPY_FILE), ContextCoder)


def averaged_twin(config: EntropyConfig, checkpoint: Path) -> ContextModel:
    """The context model with the averaged weights of a checkpoint."""
    tensors = load_checkpoint(checkpoint).tensors
    num_channels = len(tensors["model"]["deviations"])
    settings = config.entropy
    model = ContextModel([1.0] * num_channels, settings.units, settings.head_units)
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    return model.eval()


def _check_same(frozen: FrozenCodec, run_dir: Path, config: EntropyConfig) -> None:
    trained_on = read_json_record(run_dir, "data.json")["latent_id"]
    if frozen.info.latent_id != trained_on:
        raise ExportError(
            f"found latents {frozen.info.latent_id} in entropy.codec {config.entropy.codec}, "
            f"expected those that the run was on, {trained_on}: put that autoencoder back"
        )


def _fit(
    config: EntropyConfig, frozen: FrozenCodec, model: ContextModel, step: float
) -> ContextCoder:
    """The integer coder; its tables are counted on latents of training images."""
    source = open_sources(config.data.images(frozen.factor))
    latents, _ = measure_images(frozen.codec.autoencoder, source)
    steps = [quantizer.step_from_quality(quality, step) for quality in FIT_QUALITIES]
    return fit_coder(model, latents, steps)


def _copy(frozen: FrozenCodec, folder: Path) -> None:
    """Copy the autoencoder, its licence, and the coders that it has and had."""
    copy_model(frozen.directory, folder)
    for path in frozen.directory.glob("LICENSE*"):
        shutil.copyfile(path, folder / path.name)
    if (frozen.directory / CODEC_FILE).is_file():
        info = frozen.info
        for coder_id in info.earlier_coders:
            source = earlier_coder(frozen.directory, coder_id)
            shutil.copyfile(source, earlier_coder(folder, coder_id))
        present = frozen.directory / ENTROPY_FILE
        shutil.copyfile(present, earlier_coder(folder, info.coder_id))


def _summary(frozen: FrozenCodec) -> str:
    if (frozen.directory / CODEC_FILE).is_file():
        return frozen.info.summary.removesuffix(SUFFIX) + SUFFIX
    kind = type(frozen.codec.autoencoder).__name__
    return f"{kind}, f{frozen.factor}, {frozen.num_channels} channels{SUFFIX}"
