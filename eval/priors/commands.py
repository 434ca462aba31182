"""The commands `latent-codec-eval prior` and `latent-codec-eval prior-speed`.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Force, Json, Model
from eval.terminal import (
    EXTRA_MODULES,
    LpipsBackbone,
    print_problems,
    print_table,
    progress,
    status,
)

Split = Annotated[
    Path,
    typer.Option(exists=True, file_okay=False, metavar="DIR", help="Images in class folders."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Of the sampler; 25.")]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", min=0.0, max=100.0, help="1 for none; else the prior's own."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples at once.")]


def prior(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="PRIOR|SAMPLES", help="A prior, or a folder of samples in class folders."
        ),
    ],
    train: Split,
    validation: Split,
    test: Split,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", file_okay=False, help="Folder for samples, pictures, results.json."
        ),
    ],
    number: Annotated[
        int | None,
        typer.Option("--num", min=16, help="Samples to draw; as many as the larger split has."),
    ] = None,
    guidance: Guidance = None,
    steps: Steps = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the first sample, and of all choices.")
    ] = 0,
    batch: Batch = 16,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            file_okay=False,
            help="Folder for what was computed of the splits; several priors may share it.",
        ),
    ] = None,
    model: Model = None,
    lpips_backbone: LpipsBackbone = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a prior: distances to real images, a classifier's verdict, nearest training images.

    Writes results.json, samples.webp and nearest.webp. A run that was stopped goes on; samples that
    are there already are used again. --model names the codec where a folder of samples is measured.

    \b
    Example:
      latent-codec-eval prior my-prior --train photos/train --validation photos/validation \\
        --test photos/test -o results/ --guidance 3
    """
    del debug
    with console.needs_extra("eval", EXTRA_MODULES):
        from eval.lpips import load_lpips
        from eval.priors.encoded import Instruments
        from eval.priors.kept import Keeper
        from eval.priors.measuring import measure_prior, open_splits
        from eval.priors.results import distance_tables, remarks
        from eval.priors.subject import Wish, open_subject

    wish = Wish(number, guidance, steps, seed, batch, force)
    opened = open_subject(subject, model=model, device=device, dtype=dtype)
    splits = open_splits(train, validation, test, opened.size)
    network = load_lpips("squeeze", lpips_backbone).to(opened.codec.device)
    larger = max(len(splits.validation), len(splits.test))
    with progress("sampling", wish.number or larger) as advance:
        samples, drawing = opened.samples(wish, output / "samples", larger, advance)
    report = measure_prior(
        samples,
        splits,
        Instruments(opened.codec, network, Keeper(cache or output / "cache")),
        output,
        drawing=drawing,
        seed=seed,
        progress=progress,
    )
    if as_json:
        print(report.to_json(), end="")
        return
    for table in distance_tables(report):
        print_table(table)
    print("\n".join([*remarks(report), f"figures and pictures in {output}"]))
    print_problems(report.notes, [])


def prior_speed(
    name: Annotated[str, typer.Argument(metavar="PRIOR", help="A diffusion prior.")],
    number: Annotated[int, typer.Option("-n", "--num", min=1, help="Images at once.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the sampler.")] = 25,
    guidance: Annotated[
        float, typer.Option("--guidance", min=1.0, max=100.0, help="1 for none.")
    ] = 3.0,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed rounds.")] = 3,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Processor threads.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time sampling and decoding beside diffusers' DiTPipeline with Stable Diffusion's autoencoder.

    Both run a transformer of the same weights as often; a prior with a UNet is timed too, and the
    transformer is then one of about its arithmetic.

    \b
    Example:
      latent-codec-eval prior-speed my-prior -n 16 --steps 25
    """
    del debug
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec.prior import open_prior
        from eval.priors.speed import measure_speed
        from eval.priors.speed_report import speed_table

    opened = open_prior(name, device=device, dtype=dtype)
    with status() as show:
        report = measure_speed(
            opened,
            number=number,
            steps=steps,
            guidance=guidance,
            runs=runs,
            threads=threads,
            report=show,
        )
    if as_json:
        print(report.to_json(), end="")
        return
    print_table(speed_table(report))
    print("\n".join(report.lines()))
