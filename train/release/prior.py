"""From a run of a diffusion prior to a directory: a pipeline of diffusers, prior.json, a card."""

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from codec.outputs import atomic_folder
from codec.prior.directory import CODEC_FOLDER, PriorInfo, read_prior, write_prior
from codec.prior.pipeline import LatentPriorPipeline
from codec.prior.process import training_scheduler
from codec.shards.manifest import Manifest
from train.entropy.frozen import FrozenCodec, open_codec
from train.prior.build import make_denoiser
from train.prior.embeddings import Embeddings
from train.prior.latents import image_settings
from train.prior.sections import PriorConfig
from train.prior.shard_latents import shard_classes
from train.release.card import RunRecords, read_records
from train.release.folders import ExportError
from train.release.portable import portable
from train.report import read_json_record
from train.samples.pool import open_sources
from train.state import fill, load_checkpoint


def export_prior(
    config: PriorConfig,
    run_dir: Path,
    checkpoint: Path,
    output: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    best: bool = False,
) -> PriorInfo:
    """Write a prior's directory; arguments are those of `train.release.export.export_run`.

    Raises:
        ExportError: the codec is not the one that the run was on.
    """
    frozen = open_codec(config.prior.codec, torch.device("cpu"))
    trained_on = read_json_record(run_dir, "data.json")["latent_id"]
    if trained_on not in frozen.info.accepts:
        raise ExportError(
            f"found latents {frozen.info.latent_id} in prior.codec {config.prior.codec}, expected "
            f"those that the run was on, {trained_on}: put that autoencoder back"
        )
    classes = class_names(config)
    model = averaged_denoiser(config, checkpoint, frozen, len(classes))
    objective = config.objective
    pipeline = LatentPriorPipeline(
        model,
        training_scheduler(
            objective.objective, objective.noise_schedule, objective.zero_terminal_snr
        ),
        class_names=classes,
        latent_channels=frozen.num_channels,
    )
    records = read_records(run_dir, checkpoint, best=best)
    side = latent_side(config, frozen) * frozen.factor
    with atomic_folder(output) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        codec = embed_codec(frozen, partial)
        (partial / "README.md").write_text(
            card(name or output.name, licence, config, records, model), encoding="utf-8"
        )
        write_prior(
            partial,
            name=name or output.name,
            kind="diffusion",
            codec=codec,
            latent_id=trained_on,
            class_names=classes,
            size=(side, side),
            license_name=licence or "see the licence of the training images",
            summary=summary(config, model, records.num_images),
        )
    return read_prior(output)


def embed_codec(frozen: FrozenCodec, folder: Path) -> str:
    """The name by which a prior finds its codec; one that is not embedded is copied into it."""
    if frozen.info.is_embedded:
        return frozen.info.name
    shutil.copytree(frozen.directory, folder / CODEC_FOLDER)
    return CODEC_FOLDER


def averaged_denoiser(
    config: PriorConfig, checkpoint: Path, frozen: FrozenCodec, num_classes: int
) -> Any:
    """The averaged weights of a checkpoint, in fp16."""
    side = latent_side(config, frozen)
    texts = None if config.data.embeddings is None else Embeddings.read(config.data.embeddings)
    model = make_denoiser(
        config,
        (frozen.num_channels, side, side),
        num_classes,
        None if texts is None else texts.shape,
    )
    tensors = load_checkpoint(checkpoint).tensors
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    nn.Module.to(model, torch.float16)  # diffusers' own `to` warns of it
    return model.eval()


def class_names(config: PriorConfig) -> tuple[str, ...]:
    """Of the training, by number; empty for a prior without classes."""
    if config.prior.condition != "class":
        return ()
    if config.data.shards is not None:
        return shard_classes(config.data.shards)
    return open_sources(image_settings(config.data)).classes


def latent_side(config: PriorConfig, frozen: FrozenCodec) -> int:
    """h and w of the latents."""
    if config.data.shards is None:
        return -(-config.data.size // frozen.codec.multiple) * (
            frozen.codec.multiple // frozen.factor
        )
    ((h, _),) = Manifest.read(Path(config.data.shards)).grids
    return h


def summary(config: PriorConfig, model: Any, num_images: int) -> str:
    """One line for lists."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{config.prior.architecture}, {config.objective.objective}, {millions:.1f}M parameters, "
        f"{num_images} images"
    )


def card(
    name: str, licence: str | None, config: PriorConfig, records: RunRecords, model: Any
) -> str:
    """The card's text: what the run itself recorded, nothing else."""
    figures = [
        f"| {figure} | {value:.4f} |"
        for figure, value in sorted(records.figures.items())
        if figure.startswith("val/")
    ]
    versions = ", ".join(f"{key} {value}" for key, value in records.versions.items())
    recipe = yaml.safe_dump(portable(config), sort_keys=False).strip()
    parts = [
        f"# {name}",
        f"Licence of the weights: {licence or 'see the licence of the training images'}.",
        f"A prior over the latents of `{Path(config.prior.codec).name}`: "
        f"{config.prior.architecture} of {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M "
        f"parameters, objective {config.objective.objective}, condition {config.prior.condition}.",
        "```\nlatent-codec sample --prior DIR -n 16 -o OUT\n```",
        "## Training",
        f"- Data: {records.num_images} images; {records.weights_at} latents were seen.\n"
        f"- Time: {records.minutes:.0f} minutes.\n"
        f"- Versions: {versions}.\n"
        "- Command: `latent-codec-train CONFIG` with the recipe below, then "
        "`latent-codec-train export RUN -o DIR`.",
    ]
    if figures:
        parts += [
            "## Held-out latents",
            "Mean squared error of what is predicted, over all times and by tenths of the time "
            "from clean to noise; averaged weights, measured by the run.",
            "\n".join(["| figure | value |", "| --- | --- |", *figures]),
        ]
    parts += ["## Recipe", f"```yaml\n{recipe}\n```"]
    return "\n\n".join(parts) + "\n"
