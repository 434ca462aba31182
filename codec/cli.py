"""The `latent-codec` command: photographs to `.lc` files and back.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Force, Json, Model
from codec.conversion import commands as conversion_commands
from codec.dataset.commands import dataset
from codec.prior.commands import sample
from codec.shards import commands as shard_commands

app = console.new_app("""Compress images into small latent files (.lc), and bring them back.

\b
Example:
  latent-codec encode photo.jpg -o photo.lc
  latent-codec decode photo.lc -o photo.png
""")

Output = Annotated[
    str,
    typer.Option("--output", "-o", help="File, folder (for several inputs), or - for stdout."),
]


class ImageFormat(StrEnum):
    """Formats that decoded images are saved in."""

    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"
    AVIF = "avif"
    TIFF = "tiff"
    BMP = "bmp"
    PPM = "ppm"


class Alpha(StrEnum):
    """What becomes of transparency."""

    COMPOSITE = "composite"
    KEEP = "keep"


def _print_version(wanted: bool) -> None:
    if wanted:
        from codec import __version__

        print(f"latent-codec {__version__}")
        raise typer.Exit


@app.callback()
def _describe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


@app.command()
def encode(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Files, folders, patterns, or -.")
    ],
    output: Output,
    model: Model = None,
    quality: Annotated[
        int | None,
        typer.Option("--quality", "-q", min=1, max=100, help="Higher is larger and closer."),
    ] = None,
    step: Annotated[
        float | None, typer.Option("--step", help="Quantiser step instead of a quality.")
    ] = None,
    target_bpp: Annotated[
        float | None,
        typer.Option("--target-bpp", help="Best quality of at most so many bits per pixel."),
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option("--target-bytes", help="Best quality of at most so many bytes.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    alpha: Annotated[
        Alpha, typer.Option("--alpha", help="Put transparency over white, or keep it lossless.")
    ] = Alpha.COMPOSITE,
    keep_metadata: Annotated[
        bool,
        typer.Option(
            "--keep-metadata",
            help="Keep EXIF, text, and for information the colour profile: pixels become sRGB.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what cannot be kept instead of warning.")
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Compress images into .lc files.

    \b
    Example:
      latent-codec encode photo.jpg -o photo.lc
      latent-codec encode photos/ 'more/*.png' -o packed/ --quality 60
      latent-codec encode photos/ -o packed/ --target-bpp 0.15
      latent-codec encode logo.png -o logo.lc --alpha keep --keep-metadata
      cat photo.jpg | latent-codec encode - -o - > photo.lc
    """
    if step is not None and not 0 < step < 65536:
        raise typer.BadParameter(
            f"found {step}, expected a number above 0 and below 65536", param_hint="'--step'"
        )
    from codec.rate_control import RateError, Wish
    from codec.transcoding import Settings, encode_files

    try:
        wish = Wish(quality, step, target_bytes, target_bpp)
    except RateError as error:
        raise typer.BadParameter(str(error)) from None
    settings = Settings(model, device, dtype, force, debug)
    failures = encode_files(
        images,
        output,
        settings,
        wish=wish,
        strict=strict,
        alpha=alpha.value,
        keep_metadata=keep_metadata,
    )
    raise typer.Exit(1 if failures else 0)


@app.command()
def decode(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE.lc", help="Files, folders, patterns, or -.")
    ],
    output: Output,
    model: Model = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option("--format", help="Image format; png, or what the output's suffix says."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Bring images back from .lc files, with the alpha and metadata that they hold.

    A format that cannot hold them gives a warning. The colours are sRGB, whatever profile the
    original had; a file that kept one comes back with a profile of sRGB.

    \b
    Example:
      latent-codec decode photo.lc -o photo.png
      latent-codec decode packed/ -o photos/ --format jpg
    """
    from codec.transcoding import Settings, decode_files

    settings = Settings(model, device, dtype, force, debug)
    failures = decode_files(files, output, settings, image_format=image_format)
    raise typer.Exit(1 if failures else 0)


@app.command()
def info(
    file: Annotated[str, typer.Argument(metavar="FILE.lc", help="A file, or - for stdin.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is in an .lc file, without decoding it.

    \b
    Example:
      latent-codec info photo.lc
      latent-codec info photo.lc --json
    """
    from codec.reports import read_report

    report = read_report(file)
    print(json.dumps(asdict(report)) if as_json else "\n".join(report.lines()))


@app.command()
def models(as_json: Json = False, debug: Debug = False) -> None:
    """List the models at hand, and the embedded priors.

    These are the embedded ones, and those in the folders of LATENT_CODEC_MODELS. JSON lists the
    models alone.

    \b
    Example:
      latent-codec models
      LATENT_CODEC_MODELS=my-models latent-codec models --json
    """
    from codec.catalog import known_models
    from codec.prior.directory import embedded_priors
    from codec.reports import model_entry, model_lines, prior_lines

    found = list(known_models())
    if as_json:
        print(json.dumps([model_entry(model) for model in found]))
    else:
        lines = [*model_lines(found), *prior_lines(embedded_priors())]
        print("\n".join(lines) or "no models")


app.command()(dataset)
app.command()(sample)
shard_commands.register(app)
conversion_commands.register(app)


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    console.run(app)


def script() -> NoReturn:
    """What the installed command runs."""
    console.leave_after(main)
