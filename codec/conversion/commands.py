"""The commands for models in other forms: convert and fold.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import console
from codec.console import Debug, Dtype, Force, Json

if TYPE_CHECKING:
    from codec.conversion.fold_directory import Folded
    from codec.conversion.ldm import Converted


class FormulaName(StrEnum):
    """How a diffusion model's latents come of raw ones; see `codec.conversion.normalization`."""

    FACTOR = "factor"
    SHIFT = "shift"
    CHANNELS = "channels"
    XL = "xl"


def register(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    app.command()(convert)
    app.command()(fold)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR", exists=True, help="An original checkpoint, or a model directory."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A directory for a file, and a file for a directory."),
    ],
    scaling_factor: Annotated[
        float | None,
        typer.Option("--scaling-factor", help="Of the latents; what the file says, or SD's."),
    ] = None,
    shift_factor: Annotated[
        float | None,
        typer.Option("--shift-factor", help="Subtracted before scaling; the file's, or 0."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn an original Stable Diffusion or LDM VAE checkpoint into a model directory, or back.

    A file (.safetensors, or .ckpt, .pt, .pth, .bin of tensors alone) holds the VAE or all of Stable
    Diffusion. Its width, depth and latent size are read from it; no network is used. The result is
    compared with the original network's outputs before it is put in place.

    \b
    Example:
      latent-codec convert vae-ft-mse-840000-ema-pruned.safetensors -o sd-vae
      latent-codec convert sd_xl_base_1.0.safetensors -o sdxl-vae --scaling-factor 0.13025
      latent-codec convert sd-vae -o vae.ckpt
    """
    factors = {"--scaling-factor": scaling_factor, "--shift-factor": shift_factor}
    for name, value in factors.items():
        if value is not None and not 0 <= abs(value) < 1e6:
            raise typer.BadParameter(f"found {value}, expected less", param_hint=f"'{name}'")
    if scaling_factor == 0:
        raise typer.BadParameter("found 0, expected another", param_hint="'--scaling-factor'")
    if source.is_dir():
        _check_back(output, factors)
    elif _is_file_name(output):
        raise typer.BadParameter(
            f"found {output} for the result of a file, expected a directory", param_hint="'-o'"
        )
    from codec.conversion.ldm import to_directory, to_single_file

    if source.is_dir():
        done = to_single_file(source, output, force=force)
    else:
        done = to_directory(
            source, output, scaling_factor=scaling_factor, shift_factor=shift_factor, force=force
        )
    print(json.dumps(asdict(done)) if as_json else _converted_line(done))
    if done.note:
        console.print_warning(done.note)


def fold(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, directory or hub id.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Directory of the new model.")
    ],
    stats: Annotated[
        Path | None,
        typer.Option(
            "--stats",
            exists=True,
            file_okay=False,
            metavar="DATASET",
            help="Dataset of this model's latents; config.json without it.",
        ),
    ] = None,
    formula: Annotated[
        FormulaName | None,
        typer.Option("--formula", help="channels if there are statistics of them, else shift."),
    ] = None,
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fold the scale and shift of a model's latents into its weights.

    The new model's latents have mean 0 and deviation 1, so pipelines that know only scaling_factor,
    which becomes 1, are right too. Its latents are other numbers: it has other ids, its files bring
    their own tables, and files made before still need the old model.

    \b
    The formulas:
      channels  (latents - latents_mean) / latents_std
      shift     (latents - shift_factor) * scaling_factor
      factor    latents * scaling_factor
      xl        (latents - latents_mean) * scaling_factor / latents_std

    \b
    Example:
      latent-codec fold kl-f8d4 -o kl-f8d4-unit
      latent-codec fold my-codec -o unit --stats latents/ --formula shift
    """
    if stats is not None and formula is FormulaName.XL:
        raise typer.BadParameter(
            "found xl with --stats, expected channels, shift or factor: only a config.json says "
            "what scaling_factor xl is to take beside the channels' own",
            param_hint="'--formula'",
        )
    from codec.conversion.fold_directory import fold_directory
    from codec.conversion.normalization import Formula
    from codec.device import DTYPES

    done = fold_directory(
        model,
        output,
        formula=None if formula is None else Formula(formula.value),
        dataset=stats,
        dtype=None if dtype is None else DTYPES[dtype.value],
        force=force,
    )
    print(json.dumps(asdict(done)) if as_json else "\n".join(_folded_lines(done)))
    if done.note:
        console.print_warning(done.note)


def _check_back(output: Path, factors: dict[str, float | None]) -> None:
    """Wrong use of a conversion to a file."""
    if not _is_file_name(output):
        raise typer.BadParameter(
            f"found {output} for the result of a directory, expected a name that ends in "
            ".safetensors or .ckpt",
            param_hint="'-o'",
        )
    given = [name for name, value in factors.items() if value is not None]
    if given:
        raise typer.BadParameter(
            "found a factor for a directory, whose config.json has its own", param_hint=given[0]
        )


def _is_file_name(path: Path) -> bool:
    return path.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def _converted_line(done: "Converted") -> str:
    shape, agreement = done.shape, done.agreement
    aside = f", {done.num_left_out} others left out" if done.num_left_out else ""
    return (
        f"{done.output}  f{shape.factor}, {shape.latent_channels} channels, "
        f"{done.num_tensors} tensors{aside}; latents {done.latent_id}; outputs differ by "
        f"{agreement.latents:.1g} (latents) and {agreement.images:.1g} (images)"
    )


def _folded_lines(done: "Folded") -> list[str]:
    normalization, agreement = done.normalization, done.agreement
    return [
        f"{done.output}  {done.formula.value} of {done.statistics}, {done.dtype}; "
        f"latents {done.source_latent_id} -> {done.latent_id}",
        "  mean       " + " ".join(f"{value:.4g}" for value in normalization.mean),
        "  deviation  " + " ".join(f"{value:.4g}" for value in normalization.std),
        f"  outputs differ by {agreement.latents:.1g} (latents) and {agreement.images:.1g} "
        "(images), by rounding",
    ]
