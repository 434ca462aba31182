"""A model directory with its latents' scale and shift folded into the weights, checked."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codec import backbone, identity
from codec.architectures import latent_channels
from codec.catalog import model_directory
from codec.checkpoint import CODEC_FILE, ModelInfo, read_info
from codec.conversion.agreement import Agreement, difference, random_image
from codec.conversion.errors import ConversionError
from codec.conversion.folding import fold
from codec.conversion.normalization import (
    Formula,
    Normalization,
    best_formula,
    dataset_statistics,
)
from codec.identity import CONFIG_FILE
from codec.outputs import atomic_folder, refuse_existing_folder

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded into which model.

    Attributes:
        source: Directory of the model.
        output: The new directory.
        source_latent_id: Of the model.
        latent_id: Of the folded one, whose raw latents are other numbers.
        formula: What its raw latents are.
        statistics: Where the numbers came from.
        normalization: The numbers.
        dtype: That the weights are stored in.
        agreement: Between both models' outputs, normalised; of rounding alone.
        note: What the user should know of; None for nothing.
    """

    source: str
    output: str
    source_latent_id: str
    latent_id: str
    formula: Formula
    statistics: str
    normalization: Normalization
    dtype: str
    agreement: Agreement
    note: str | None


def fold_directory(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    formula: Formula | None = None,
    dataset: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> Folded:
    """Writes a directory whose model gives normalised latents, for pipelines and `Codec`.

    A codec's entropy coder does not go along: it codes other numbers. Files of the new model bring
    their own tables, and files made before need the old one.

    Args:
        model: Name, directory or hub id, as `Codec.from_pretrained` takes it.
        output: The directory to write; complete or not there.
        formula: Which statistics; None for those of channels, or the overall ones without.
        dataset: Folder of a dataset whose manifest has the statistics; None for config.json's.
        dtype: To store the weights in; None for the one they are stored in.
        force: Replace a model directory that is there.

    Raises:
        ConversionError: The model takes no scale and shift, or has no statistics, or the dataset is
            another model's.
        LatentCodecError: There is no such model or dataset.
        FileExistsError: The output is there.
    """
    target = Path(output)
    refuse_existing_folder(target, force=force, marker=CONFIG_FILE, what="model directory")
    directory = model_directory(model)
    source_id = identity.latent_id(directory)
    loaded = backbone.load_autoencoder(directory).eval()
    statistics = loaded.config if dataset is None else dataset_statistics(Path(dataset), source_id)
    chosen = formula or best_formula(statistics)
    normalization = Normalization.by(chosen, statistics, latent_channels(loaded.config))
    stored = dtype or _stored_dtype(directory)
    folded = fold(loaded, normalization)
    _cast(folded, stored)
    with atomic_folder(target) as partial:
        folded.save_pretrained(partial, safe_serialization=True)
        agreement = _compare(loaded, backbone.load_autoencoder(partial).eval(), normalization)
        agreement.check(stored, "folding")
        folded_id = identity.latent_id(partial)
        info = read_info(directory) if (directory / CODEC_FILE).is_file() else None
        name = info.name if info else directory.name
        card = _card(target.name, name, info, source_id, folded_id, chosen)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for path in _licences(directory, info):
            shutil.copyfile(path, partial / path.name)
    return Folded(
        source=str(directory),
        output=str(target),
        source_latent_id=source_id,
        latent_id=folded_id,
        formula=chosen,
        statistics="config.json" if dataset is None else os.fspath(dataset),
        normalization=normalization,
        dtype=str(stored).removeprefix("torch."),
        agreement=agreement,
        note=_note(info, target) if info else None,
    )


def _licences(directory: Path, info: ModelInfo | None) -> list[Path]:
    """Texts that go along with the weights; the embedded models share theirs."""
    folders = [directory.parent, directory] if info and info.is_embedded else [directory]
    return [path for folder in folders for path in sorted(folder.glob("LICENSE*"))]


def _stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of all weights in a directory; float32 where they differ."""
    files = identity.weight_files(directory)
    found = {tensor.dtype for path in files for tensor in identity.stored_tensors(path)}
    return _STORED.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts a model; what its new dtype cannot hold is an error."""
    nn.Module.to(model, dtype)
    if not all(bool(one.isfinite().all()) for one in model.state_dict().values()):
        raise ConversionError(
            f"found folded weights that {dtype} cannot hold, expected smaller ones: the latents' "
            "deviations are too small for it; use --dtype fp32"
        )


@torch.no_grad()
def _compare(source: Any, folded: Any, normalization: Normalization) -> Agreement:
    """Both models' latents of an image, normalised, and their images of the same latents."""
    mean, std = (_channels(values) for values in (normalization.mean, normalization.std))
    x = random_image(source.config.in_channels, backbone.downscale_factor(source))
    raw_latents = backbone.encode_raw(source, x)
    normalised = (raw_latents - mean) / std
    return Agreement(
        difference(backbone.encode_raw(folded, x), normalised),
        difference(folded.decode(normalised).sample, source.decode(raw_latents).sample),
    )


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[None, :, None, None]


def _note(info: ModelInfo, target: Path) -> str:
    return (
        f"the entropy coder of {info.name} was left behind, for it codes other numbers: files of "
        f"{target} bring their own tables (latent-codec-train export --tables-for fits some), and "
        f"files made before need {info.name}"
    )


def _card(
    title: str,
    name: str,
    info: ModelInfo | None,
    source_id: str,
    folded_id: str,
    formula: Formula,
) -> str:
    """The model card as Markdown."""
    licence = info.license_name if info else f"that of {name}"
    return f"""# {title}

Licence of the weights: {licence}.

- {name} (latents {source_id}) with the scale and shift of its latents folded into its weights
  (latents {folded_id}): raw latents come out normalised, and `scaling_factor` is 1.
- Command: `latent-codec fold MODEL -o DIR --formula {formula.value}`.
"""
