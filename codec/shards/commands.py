"""The commands for a finished dataset: verify, stats, decode-shards, export-npy and import.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Json, Model

EXTRA_MODULES = ("pyarrow", "webdataset", "datasets")

Dataset = Annotated[
    Path, typer.Argument(metavar="DST", exists=True, file_okay=False, help="Folder of a dataset.")
]


class ContainerName(StrEnum):
    """What holds the records of a shard."""

    TAR = "tar"
    PARQUET = "parquet"


class ContentName(StrEnum):
    """How a record holds its latents."""

    LC = "lc"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class PosteriorName(StrEnum):
    """What a cache holds of an image."""

    NONE = "none"
    MOMENTS = "moments"
    MEAN_STD = "mean-std"


def register(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    app.command()(verify)
    app.command()(stats)
    app.command("decode-shards")(decode_shards)
    app.command("export-npy")(export_npy)
    app.command("import")(import_latents)


def verify(
    dataset: Dataset,
    model: Model = None,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Decode so many records, picked at random.")
    ] = 256,
    everything: Annotated[
        bool, typer.Option("--all", help="Decode every record, and measure the statistics anew.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that a dataset is whole: checksums, counts, keys, statistics, and that it decodes.

    \b
    Example:
      latent-codec verify latents/
      latent-codec verify latents/ --all --model kl-f8d4
    """
    with console.needs_extra("dataset", EXTRA_MODULES):
        from codec.shards.manifest import Manifest
        from codec.shards.verify import verify as check

        num_shards = len(Manifest.read(dataset).shards)
        with _progress("Verifying", num_shards) as advance:
            found = check(
                dataset, model=model, sample=sample, everything=everything, advance=advance
            )
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{dataset}: {found.num_shards:,} shards, {found.num_records:,} records, "
            f"{found.num_decoded:,} decoded, {len(found.problems)} problems"
        )
    for problem in found.problems:
        console.print_error(problem)
    raise typer.Exit(1 if found.problems else 0)


def stats(dataset: Dataset, as_json: Json = False, debug: Debug = False) -> None:
    """Say what is in a dataset: counts, bytes, and the statistics of its latents.

    \b
    Example:
      latent-codec stats latents/
      latent-codec stats latents/ --json
    """
    from codec.shards.manifest import Manifest
    from codec.shards.summary import summary, summary_lines

    manifest = Manifest.read(dataset)
    print(json.dumps(summary(manifest)) if as_json else "\n".join(summary_lines(manifest)))


def decode_shards(
    dataset: Dataset,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for the pictures.")
    ],
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="So many records, spread evenly.")
    ] = 24,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Decode some records of a dataset to pictures and a contact sheet, for a look.

    \b
    Example:
      latent-codec decode-shards latents/ -o look/ --limit 100
    """
    with console.needs_extra("dataset", EXTRA_MODULES):
        from codec.shards import contact
        from codec.shards.manifest import Manifest

        total = min(limit, Manifest.read(dataset).num_records)
        with _progress("Decoding", total) as advance:
            count = contact.decode_shards(
                dataset,
                output,
                limit=limit,
                model=model,
                device=device,
                dtype=dtype,
                advance=advance,
            )
    print(f"{count:,} pictures in {output}" + (f", see {contact.SHEET_FILE}" if count else ""))


def export_npy(
    dataset: Dataset,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="A new or empty folder.")
    ],
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Scaled latents; trainers usually scale themselves.")
    ] = False,
    mean_std: Annotated[
        bool, typer.Option("--mean-std", help="Add a deviation of 0 where there is no posterior.")
    ] = False,
    model: Model = None,
    debug: Debug = False,
) -> None:
    """Write one .npy file an image and dataset.json, as EDM2 and SiT read them.

    \b
    Example:
      latent-codec export-npy latents/ -o npy/
      latent-codec export-npy latents/ -o npy/ --mean-std
    """
    with console.needs_extra("dataset", EXTRA_MODULES):
        from codec.shards import export
        from codec.shards.manifest import Manifest

        with _progress("Exporting", Manifest.read(dataset).num_records) as advance:
            count = export.export_npy(
                dataset, output, scaled=scaled, mean_std=mean_std, model=model, advance=advance
            )
    print(f"{count:,} files in {output}, labels in {export.LABELS_FILE}")


def import_latents(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", exists=True, help="Folder of caches, or one file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the dataset.")
    ],
    model: Model = None,
    content: Annotated[
        ContentName, typer.Option("--content", help="What the shards hold.")
    ] = ContentName.FLOAT16,
    container: Annotated[
        ContainerName, typer.Option("--container", help="What the shards are.")
    ] = ContainerName.TAR,
    posterior: Annotated[
        PosteriorName,
        typer.Option("--posterior", help="The second half of the channels in the cache."),
    ] = PosteriorName.NONE,
    scaled_by: Annotated[
        float | None, typer.Option("--scaled-by", help="Factor of scaled latents; raw without it.")
    ] = None,
    shifted_by: Annotated[
        float, typer.Option("--shifted-by", help="What was subtracted before scaling.")
    ] = 0.0,
    quality: Annotated[
        float | None, typer.Option("--quality", "-q", help="Of .lc files, 1 to 100.")
    ] = None,
    factor: Annotated[
        int, typer.Option("--factor", min=1, help="Pixels a cell, where no model says it.")
    ] = 8,
    shard_files: Annotated[
        int, typer.Option("--shard-files", min=1, help="Files of the cache that make a shard.")
    ] = 1024,
    debug: Debug = False,
) -> None:
    """Make a dataset of latents that another program cached: .npy, .npz and .safetensors files.

    \b
    Example:
      latent-codec import vae-cache/ -o latents/ --model stabilityai/sd-vae-ft-mse
      latent-codec import scaled/ -o latents/ --scaled-by 0.18215 --model DIR --content lc
      latent-codec import edm2/ -o latents/ --posterior mean-std
    """
    if scaled_by is not None and not 0 < abs(scaled_by) < 1e6:
        raise typer.BadParameter(f"found {scaled_by}, expected another", param_hint="'--scaled-by'")
    if content is ContentName.LC and model is None:
        raise typer.BadParameter("found no model, whose tables code .lc files", param_hint="'-m'")
    if content is not ContentName.LC and quality is not None:
        raise typer.BadParameter(
            f"found a quality for {content.value}, expected it with lc", param_hint="'--quality'"
        )
    with console.needs_extra("dataset", EXTRA_MODULES):
        from codec.shards.forms import Container, Content, ShardForm
        from codec.shards.import_settings import Cache, prepare
        from codec.shards.importing import Posterior, import_caches

        kind = Content(content.value)
        has_posterior = posterior is not PosteriorName.NONE and kind is not Content.LC
        cache = Cache(
            source,
            Posterior(posterior.value),
            scaled_by=1.0 if scaled_by is None else scaled_by,
            shifted_by=shifted_by,
            factor=factor,
        )
        settings, pack = prepare(
            cache,
            ShardForm(Container(container.value), kind, has_posterior),
            model=model,
            quality=quality,
            shard_files=shard_files,
        )
        with _progress("Importing", None) as advance:
            manifest = import_caches(source, output, settings, pack=pack, advance=advance)
    print(
        f"{output}: {manifest.num_records:,} records of {manifest.num_images:,} files, "
        f"{manifest.num_errors:,} errors"
    )
    if manifest.num_errors:
        console.print_error(
            f"{manifest.num_errors:,} files gave no latents; {output / 'errors.jsonl'} says why"
        )
    raise typer.Exit(1 if manifest.num_errors else 0)


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yields a function that moves a progress bar on, on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda steps=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps=1: progress.advance(task, steps)
