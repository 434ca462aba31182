"""From a run of a token prior to a directory: files of transformers, prior.json, card and codec."""

from pathlib import Path
from typing import Any

import torch

from codec.outputs import atomic_folder
from codec.prior.directory import PriorInfo, read_prior, write_prior
from codec.prior.token_model import save_model
from codec.prior.tokens import layout_of
from train.entropy.frozen_codes import FrozenCodes
from train.prior.token_codes import open_token_codec
from train.prior.token_sections import TokenPriorConfig
from train.release.card import read_records
from train.release.folders import ExportError, refuse_folder
from train.release.prior import embed_codec
from train.release.token_prior_card import TokenFacts, token_card
from train.report import read_json_record
from train.state import fill, load_checkpoint
from train.token_trainer import build_token_model

CARD = "README.md"


def export_tokens(
    config: TokenPriorConfig,
    run_dir: Path,
    checkpoint: Path,
    output: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    best: bool = False,
    force: bool = False,
) -> PriorInfo:
    """Write a directory that `TokenPrior.from_pretrained` and `latent-codec sample` take.

    A codec that did not come with the package is copied into its folder `codec`.

    Args:
        config: of the run.
        run_dir: the run's output folder.
        checkpoint: whose averaged weights are taken, rounded to fp16.
        output: the directory to write.
        name: the prior's name, by default the output folder's.
        licence: of the weights, by default a hint at the images.
        best: whether the checkpoint is the best one.
        force: replace an existing directory.

    Raises:
        ExportError: the output exists, or the codec is not the one that the run was on.
        ResumeError: the checkpoint is of another configuration.
    """
    refuse_folder(output, force=force)
    frozen = open_token_codec(config.tokens.codec)
    record = read_json_record(run_dir, "data.json")
    if record["latent_id"] != frozen.info.latent_id:
        raise ExportError(
            f"found latents {frozen.info.latent_id} in tokens.codec {config.tokens.codec}, "
            f"expected those that the run was on, {record['latent_id']}: put that codec back"
        )
    class_names = tuple(record["class_names"])
    model = averaged_token_model(config, checkpoint, frozen, len(class_names))
    records = read_records(run_dir, checkpoint, best=best)
    with atomic_folder(output) as partial:
        save_model(model.to(torch.float16), partial)
        info = write_prior(
            partial,
            name=name or output.name,
            kind="tokens",
            codec=embed_codec(frozen, partial),
            latent_id=frozen.info.latent_id,
            class_names=class_names,
            size=(config.data.size, config.data.size),
            license_name=licence or "see the licence of the training images",
            summary=_summary(model, records.num_images, len(class_names)),
        )
        facts = TokenFacts(config, records, info, frozen.info.name, frozen.codes.sizes)
        (partial / CARD).write_text(token_card(facts), encoding="utf-8")
    return read_prior(output)


def averaged_token_model(
    config: TokenPriorConfig, checkpoint: Path, frozen: FrozenCodes, num_classes: int
) -> Any:
    """The network with the averaged weights of a checkpoint."""
    size = config.data.size
    model = build_token_model(config.tokens, layout_of(frozen.codec, (size, size), num_classes))
    tensors = load_checkpoint(checkpoint).tensors
    fill(model.state_dict(), {**tensors["model"], **tensors["ema"]}, checkpoint)
    return model.eval()


def _summary(model: Any, num_images: int, num_classes: int) -> str:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    classes = f"{num_classes} classes" if num_classes else "no classes"
    return (
        f"{model.config.n_positions} tokens an image, {classes}, {millions:.1f}M parameters, "
        f"{num_images} images"
    )
