"""From a run to a usable codec: averaged fp16 weights, statistics, tables, ids, model card."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import nn

from codec import backbone, images
from codec.autoencoder import LatentAutoencoder
from codec.catalog import model_directory
from codec.checkpoint import CODEC_FILE, finalize, read_info
from codec.device import choose_device, choose_dtype
from codec.entropy.fit import fit
from codec.errors import LatentCodecError
from train.card import CardFacts, write_card
from train.config import TrainConfig, load_config
from train.data import find_training_images
from train.state import list_checkpoints
from train.statistics import LatentStatistics, StreamingStatistics
from train.trainer import build_model

FIT_IMAGES = 256
FIT_QUALITIES = (1, 15, 30, 40, 50, 60, 70, 85, 100)


class ExportError(LatentCodecError):
    """A run cannot be exported."""


def export_run(
    run_dir: Path,
    output: Path,
    *,
    name: str | None = None,
    quality_50_step: float | None = None,
    default_quality: int = 50,
    licence: str,
    force: bool = False,
) -> None:
    """Write a model directory that `Codec.from_pretrained` and every command take.

    Args:
        run_dir: a run's output folder; its newest checkpoint is taken.
        output: the directory to write; complete or not there.
        name: the codec's name, by default the output folder's.
        quality_50_step: quantiser step of quality 50; by default that of the codec which was
            fine-tuned, else the uniform step whose variance is that of the noise trained with.
        default_quality: the quality of files when none is asked for.
        licence: of the weights, as the card and codec.json state it.
        force: replace an existing directory.

    Raises:
        ExportError: there is no checkpoint, or the output exists.
    """
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints or not (run_dir / "config.yaml").is_file():
        raise ExportError(
            f"found no complete run in {run_dir}, expected config.yaml and a checkpoint "
            "folder: give the run.output_dir of a training"
        )
    if output.exists() and not force:
        raise ExportError(f"{output} already exists: choose another folder or add --force")
    config = load_config(run_dir / "config.yaml")
    model = averaged_model(config, checkpoints[-1])
    step = quality_50_step or default_step(config, model)
    files = find_training_images(config.data)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as temporary:
        partial = Path(temporary) / output.name
        latents, statistics = measure_latents(model, choose_files(files, FIT_IMAGES))
        model.register_to_config(
            scaling_factor=statistics.scaling_factor,
            shift_factor=statistics.shift_factor,
            latents_mean=list(statistics.mean),
            latents_std=list(statistics.std),
        )
        _cast(model, torch.float16)
        model.save_pretrained(partial, safe_serialization=True)
        scales = [2 ** ((50 - quality) / 12) for quality in FIT_QUALITIES]
        coder = fit(latents, [max(1, round(step * scale * 2**16)) for scale in scales])
        coder.save(partial / "entropy.safetensors")
        facts = card_facts(run_dir, config, name or output.name, len(files), licence)
        write_card(partial / "README.md", facts)
        finalize(
            partial,
            name=name or output.name,
            default_quality=default_quality,
            quality_50_step=step,
            license_name=licence,
            summary=summary(model, len(files)),
        )
        for path in partial.iterdir():
            path.chmod(0o644)  # the weights' file is private as diffusers writes it
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)


def averaged_model(config: TrainConfig, checkpoint: Path) -> LatentAutoencoder:
    """The averaged weights of a checkpoint, rounded to fp16 as they will be stored."""
    model = build_model(config)
    model.load_state_dict(load_file(checkpoint / "ema.safetensors"), strict=True)
    _cast(model, torch.float16)
    _cast(model, torch.float32)
    return model.eval()


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


def choose_files(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` files, spread evenly over the sorted list."""
    spread = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [files[i] for i in spread]


@torch.no_grad()
def measure_latents(
    model: LatentAutoencoder, files: Sequence[Path]
) -> tuple[list[np.ndarray], LatentStatistics]:
    """Raw latents float32 (C, h, w) of whole images, and statistics; broken ones are skipped."""
    device = choose_device(None)
    _cast(model.to(device, memory_format=torch.channels_last), choose_dtype(device, None))
    statistics = StreamingStatistics(model.config.latent_channels)
    latents = []
    for path in track(files, "latents of training images", transient=True):
        try:
            pixels = images.pad(images.load(path).pixels, model.factor)
        except images.ImageError:
            continue
        latents.append(backbone.encode_pixels(model, pixels))
        statistics.update(latents[-1])
    if not latents:
        raise ExportError(f"none of the {len(files)} training images can be read")
    _cast(model.to("cpu"), torch.float32)
    return latents, statistics.finish()


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place; diffusers' own `to` warns of every dtype."""
    nn.Module.to(model, dtype)


def summary(model: LatentAutoencoder, num_images: int) -> str:
    """One line for `latent-codec models`."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    channels, factor = model.config.latent_channels, model.factor
    return f"f{factor}, {channels} channels, {millions:.1f}M parameters, {num_images} images"


def card_facts(
    run_dir: Path, config: TrainConfig, name: str, num_images: int, licence: str
) -> CardFacts:
    """What the model card states, from the run's own records."""
    versions = json.loads((run_dir / "versions.json").read_text(encoding="utf-8"))
    log = run_dir / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    validations = [line for line in lines if "val/psnr" in line]
    return CardFacts(
        name=name,
        licence=licence,
        config=config,
        num_images=num_images,
        versions=versions,
        last=lines[-1],
        validation=validations[-1] if validations else None,
    )
