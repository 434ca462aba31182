"""The command `latent-codec-eval distance`.

Heavy imports wait inside the command, so that help and wrong use are answered at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.console import Debug, Device, Json
from eval.terminal import EXTRA_MODULES, Limit, LpipsBackbone, print_problems, progress

First = Annotated[
    Path,
    typer.Argument(exists=True, file_okay=False, metavar="FOLDER_A", help="Images, in any depth."),
]
Second = Annotated[
    Path,
    typer.Argument(exists=True, file_okay=False, metavar="FOLDER_B", help="Others, likewise."),
]


def distance(
    first: First,
    second: Second,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="For distance.json.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=32, help="Compare centre squares scaled to so many pixels."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Which images of the larger folder; bootstrap.")
    ] = 0,
    lpips_backbone: LpipsBackbone = None,
    device: Device = None,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how far two folders of images are apart, in features of SqueezeNet.

    Prints the unbiased kernel distance with an interval, and the Frechet distance, of as many
    images of each. Other features give other figures: these are no FID and no KID.

    \b
    Example:
      latent-codec-eval distance samples/ photos/ --size 256
    """
    del debug
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec.device import choose_device
        from eval.distribution.image_sets import open_images
        from eval.distribution.report import measure_sets
        from eval.lpips import load_lpips

    sets = [open_images(folder, size) for folder in (first, second)]
    sets = [images.pick(range(len(images))[:limit]) for images in sets]
    network = load_lpips("squeeze", lpips_backbone).to(choose_device(device))
    with progress("Measuring", sum(map(len, sets))) as advance:
        report = measure_sets(sets[0], sets[1], network, seed=seed, advance=advance)
    if output is not None:
        report.write(output)
    print(report.to_json() if as_json else "\n".join(report.lines()) + "\n", end="")
    print_problems([report.frechet.note] if report.frechet.note else [], [])
