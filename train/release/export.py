"""From a run to a model directory: averaged fp16 weights, statistics, tables, ids, model card.

Continuous latents and codes become a codec that makes and reads files. A model that speaks the
latents of a codec at hand, a distilled student or a decoder tuned on a frozen encoder, takes over
that codec's statistics, tables and quality scale, and reads its files. Models of class labels,
single vectors and AutoencoderKL become a plain diffusers directory, whose files bring their own
tables. A run of an entropy model goes to `train.release.entropy`, of a prior to
`train.release.prior` or `train.release.token_prior`.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codec import backbone
from codec.architectures import codebook_sizes
from codec.autoencoder import LatentAutoencoder
from codec.catalog import model_directory
from codec.checkpoint import CODEC_FILE, DEFAULT_QUALITY, ModelInfo, finalize, read_info
from codec.codes import Codes, codes_of
from codec.entropy import SymbolCoder
from codec.entropy.index_coder import IndexCoder
from codec.header import MAX_CODES
from codec.identity import CONFIG_FILE, ENTROPY_FILE, read_json
from codec.outputs import atomic_folder
from codec.prior.directory import PriorInfo
from eval.latents.statistics import LatentStatistics
from train.build import build_model
from train.config import load_config
from train.data import CropDataset
from train.prior.sections import PriorConfig
from train.prior.token_sections import TokenPriorConfig
from train.release.card import CardFacts, read_records, write_card
from train.release.coders import fit_codes, fit_one_step, refuse_quality
from train.release.entropy import export_entropy
from train.release.folders import ExportError, refuse_folder
from train.release.latents import measure_codes, measure_crops, measure_images
from train.release.prior import export_prior
from train.release.token_prior import export_tokens
from train.samples.pool import open_sources
from train.samples.sources import ImageSource
from train.sections import TrainConfig
from train.state import best_checkpoint, fill, latest_good, load_checkpoint

STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Entries of config.json that describe the latents, in the order of `LatentStatistics`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The model whose latents an exported one gives and reads.

    Attributes:
        name: for people.
        directory: where it lies.
        codec: what its codec.json says, if it makes files.
    """

    name: str
    directory: Path
    codec: ModelInfo | None


def export_run(
    run_dir: Path,
    output: Path,
    *,
    name: str | None = None,
    quality_50_step: float | None = None,
    default_quality: int | None = None,
    licence: str | None = None,
    best: bool = False,
    force: bool = False,
) -> ModelInfo | PriorInfo | None:
    """Write a model directory that `Codec.from_pretrained` and every command take.

    Args:
        run_dir: a run's output folder.
        output: the directory to write; complete or not there.
        name: the codec's name, by default the output folder's.
        quality_50_step: quantiser step of quality 50; by default that of the codec whose latents
            these are or which was fine-tuned, else the uniform step whose variance is that of the
            noise trained with.
        default_quality: the quality of files when none is asked for; by default that of the codec
            whose latents these are, else 50.
        licence: of the weights, as the card and codec.json state it; by default that of the codec
            that an entropy model was trained for, else a hint at the images.
        best: take the weights with the best held-out figures, not the newest.
        force: replace an existing directory.

    Returns:
        What codec.json says, or prior.json of a prior; None for a plain directory without either.

    Raises:
        ExportError: there is no such checkpoint, or the output exists.
    """
    checkpoint = choose_checkpoint(run_dir, best=best)
    refuse_folder(output, force=force)
    config = load_config(run_dir / "config.yaml")
    if isinstance(config, PriorConfig | TokenPriorConfig):
        if quality_50_step is not None or default_quality is not None:
            raise ExportError(
                "found a step or a quality for a prior, expected neither: its codec has them"
            )
        names = {"name": name, "licence": licence, "best": best}
        if isinstance(config, PriorConfig):
            return export_prior(config, run_dir, checkpoint, output, **names)
        return export_tokens(config, run_dir, checkpoint, output, **names, force=force)
    if not isinstance(config, TrainConfig):
        return export_entropy(
            config,
            run_dir,
            checkpoint,
            output,
            name=name,
            quality_50_step=quality_50_step,
            default_quality=default_quality,
            licence=licence,
            best=best,
        )
    model = averaged_model(config, checkpoint)
    origin = latent_origin(config)
    records = read_records(run_dir, checkpoint, best=best)
    has_tables = fits_tables(config, model)
    facts = CardFacts(
        name=name or output.name,
        licence=licence or "see the licence of the training images",
        config=config,
        records=records,
        spoken=origin.name if origin else None,
        has_tables=has_tables,
    )
    with atomic_folder(output) as partial:
        if has_tables:
            write_codec(partial, model, facts, origin, quality_50_step, default_quality)
        else:
            write_plain(partial, model, facts, origin)
    return read_info(output) if has_tables else None


def choose_checkpoint(run_dir: Path, *, best: bool) -> Path:
    """The newest whole checkpoint of a run, or the best one."""
    found = best_checkpoint(run_dir) if best else latest_good(run_dir)
    if found is not None and (run_dir / "config.yaml").is_file():
        return found
    if best:
        raise ExportError(
            f"found no best weights in {run_dir}, expected a run with held-out images (settings "
            "run.validation_folder and run.validation_every): export the newest, without --best"
        )
    raise ExportError(
        f"found no complete run in {run_dir}, expected config.yaml and a checkpoint "
        "folder: give the run.output_dir of a training"
    )


def averaged_model(config: TrainConfig, checkpoint: Path) -> Any:
    """The averaged weights and the codebooks of a checkpoint.

    Weights are rounded to fp16 as they will be stored. Codebooks are not: the running counts of
    their codes exceed fp16's range.
    """
    model: Any = build_model(config)
    tensors = load_checkpoint(checkpoint).tensors
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    _round_weights(model, torch.float16)
    _round_weights(model, torch.float32)
    return model.eval()


def fits_tables(config: TrainConfig, model: Any) -> bool:
    """Whether tables can be fitted to the latents or codes of whole images."""
    settings = model.config
    return (
        isinstance(model, LatentAutoencoder)
        and max(codebook_sizes(settings), default=0) <= MAX_CODES
        and settings.num_classes is None
        and not is_vector(config, model)
    )


def is_vector(config: TrainConfig, model: Any) -> bool:
    """Whether a training crop has a single latent vector."""
    return backbone.downscale_factor(model) >= config.data.crop_size


def write_codec(
    folder: Path,
    model: LatentAutoencoder,
    facts: CardFacts,
    origin: Origin | None,
    quality_50_step: float | None,
    default_quality: int | None,
) -> None:
    """Write a codec with its own tables, or with those of the codec whose latents it speaks."""
    config, spoken = facts.config, origin.codec if origin else None
    codes = codes_of(model)
    if codes is not None:
        refuse_quality(quality_50_step, default_quality)
        step = quality = None
    else:
        step = quality_50_step or (
            spoken.quality_50_step if spoken else default_step(config, model)
        )
        quality = default_quality or (spoken.default_quality if spoken else DEFAULT_QUALITY)
    if spoken is not None:
        _write_model(folder, model, read_json(spoken.directory / CONFIG_FILE), facts)
        shutil.copyfile(spoken.directory / ENTROPY_FILE, folder / ENTROPY_FILE)
    else:
        coder, measured = _fit(model, codes, step, open_sources(config.data))
        stated = read_json(origin.directory / CONFIG_FILE) if origin else _stated(measured)
        _write_model(folder, model, stated, facts)
        coder.save(folder / ENTROPY_FILE)
    finalize(
        folder,
        name=facts.name,
        default_quality=quality,
        quality_50_step=step,
        license_name=facts.licence,
        summary=summary(model, facts.records.num_images, spoken),
        accepts=spoken.accepts if spoken else (),
    )


def _fit(
    model: LatentAutoencoder, codes: Codes | None, step: float | None, source: ImageSource
) -> tuple[SymbolCoder | IndexCoder, LatentStatistics]:
    """A coder fitted to whole images, and statistics of their latents."""
    if codes is not None:
        indices, measured = measure_codes(model, codes, source)
        return fit_codes(indices, codes), measured
    assert step is not None  # of continuous latents
    latents, measured = measure_images(model, source)
    return fit_one_step(latents, step), measured


def write_plain(folder: Path, model: Any, facts: CardFacts, origin: Origin | None) -> None:
    """Write a directory that diffusers loads: weights, configuration with statistics, card."""
    config = facts.config
    if origin is not None:
        stated = read_json(origin.directory / CONFIG_FILE)
    else:
        dataset = CropDataset(open_sources(config.data), config.data, config.run.seed)
        stated = _stated(measure_crops(model, dataset))
    _write_model(folder, model, stated, facts)


def latent_origin(config: TrainConfig) -> Origin | None:
    """A distillation's teacher, or the model whose encoder was kept; None for own latents."""
    source = config.distillation.teacher
    if source is None and config.model.freeze_encoder:
        source = config.model.init_from
    if source is None:
        return None
    directory = model_directory(source)
    codec = read_info(directory) if (directory / CODEC_FILE).is_file() else None
    return Origin(codec.name if codec else Path(source).name, directory, codec)


def default_step(config: TrainConfig, model: LatentAutoencoder) -> float:
    """The step of the codec that was fine-tuned, else of the variance of training's noise."""
    if config.model.init_from is not None:
        origin = model_directory(config.model.init_from)
        if (origin / CODEC_FILE).is_file():
            return read_info(origin).quality_50_step
    std = model.config.posterior_std
    if std is None:
        raise ExportError(
            "this run learned its posterior's deviation, so no step follows from it: give "
            "--step, in raw latent units"
        )
    return float(std) * math.sqrt(12)


def summary(model: LatentAutoencoder, num_images: int, spoken: ModelInfo | None) -> str:
    """One line for `latent-codec models`."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    channels, factor = model.config.latent_channels, model.factor
    latents = f", latents of {spoken.name}" if spoken else ""
    return (
        f"f{factor}, {channels} channels, {millions:.1f}M parameters, {num_images} images{latents}"
    )


def _stated(statistics: LatentStatistics) -> dict[str, Any]:
    values = (
        statistics.scaling_factor,
        statistics.shift_factor,
        list(statistics.mean),
        list(statistics.std),
    )
    return dict(zip(STATISTICS, values, strict=True))


def _write_model(folder: Path, model: Any, stated: dict[str, Any], facts: CardFacts) -> None:
    """Weights in fp16, the configuration with statistics as far as its class has them, a card."""
    defaults = {"scaling_factor": 1.0, "shift_factor": 0.0}
    values = {
        name: defaults.get(name) if stated.get(name) is None else stated[name]
        for name in STATISTICS
        if name in model.config
    }
    model.register_to_config(**values)
    _round_weights(model, torch.float16)
    model.save_pretrained(folder, safe_serialization=True)
    write_card(folder / "README.md", facts)


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters in place, buffers not."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
