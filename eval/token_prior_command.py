"""The command `latent-codec-eval prior-tokens`.

Heavy imports wait inside the command, so that help and wrong use are answered at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Json
from eval.terminal import EXTRA_MODULES, Images, Limit, print_problems, print_table, progress


def prior_tokens(
    prior: Annotated[Path, typer.Argument(metavar="PRIOR", help="Directory of a token prior.")],
    folder: Images,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", file_okay=False, help="Folder for prior-tokens.json."),
    ],
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Timed rounds of the cache; 0 for none.")
    ] = 3,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images measured together.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what images cost under a token prior, beside real files, and its cache.

    An image's class is the name of its folder.

    \b
    Example:
      latent-codec-eval prior-tokens my-prior photos/ -o results/ --dtype fp32
    """
    del debug
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec import images
        from codec.prior.tokens import TokenPrior
        from eval.token_prior import measure_tokens
        from eval.token_prior_report import class_table, cost_table, remarks
    paths = images.find([folder])[:limit]
    opened = TokenPrior.from_pretrained(prior, device=device, dtype=dtype)
    with progress("measuring", len(paths)) as advance:
        report = measure_tokens(
            opened,
            paths,
            folder=Path(folder),
            batch_size=batch,
            rounds=rounds,
            advance=advance,
        )
    path = report.write(output)
    if as_json:
        print(report.to_json(), end="")
    else:
        print_table(cost_table(report))
        if report.classes:
            print_table(class_table(report))
        for line in [*remarks(report), f"wrote {path}"]:
            print(line)
    print_problems([], report.errors)
    if report.errors:
        raise typer.Exit(1)
