"""The command that times the reading of latent datasets."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from codec.console import Debug, Json, Model


def loader(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DST]", exists=True, file_okay=False, help="A dataset; else made-up ones."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Latents of a batch.")] = 128,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Worker processes.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed epochs.")] = 3,
    model: Model = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time how fast training reads a dataset of latents, beside the entropy decoder alone.

    \b
    Example:
      latent-codec-eval loader latents/
      latent-codec-eval loader --workers 2
    """
    from codec.shards.forms import Content
    from eval.loader_benchmark import measure_loader, write_synthetic

    with tempfile.TemporaryDirectory() as folder:
        places = [dataset] if dataset is not None else []
        if dataset is None:
            for content, records in ((Content.FLOAT16, 8192), (Content.LC, 512)):
                places.append(Path(folder) / content.value)
                write_synthetic(places[-1], content, records=records, model=model)
        for place in places:
            report = measure_loader(
                place, batch_size=batch, workers=workers, rounds=rounds, model=model
            )
            print(report.to_json() if as_json else report.line(), flush=True)
