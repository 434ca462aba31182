"""The `latent-codec-eval` command: how good, how fast, and a page to look at.

Heavy imports wait inside the commands, so that help and wrong use are answered at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.console import Debug, Device, Dtype, Json, Model
from eval.curve_commands import coder, rd
from eval.distribution.commands import distance
from eval.loader_commands import loader
from eval.priors.commands import prior, prior_speed
from eval.terminal import (
    EXTRA_MODULES,
    Limit,
    LpipsBackbone,
    LpipsNet,
    LpipsNetwork,
    NoLpips,
    check_lpips_options,
    chosen_lpips,
    is_quiet,
    print_problems,
    print_table,
    status,
    terminal,
)
from eval.token_prior_command import prior_tokens

app = console.new_app(
    "Measure a codec: the quality of its files, its speed, and a page to look at."
)

Quality = Annotated[
    int | None,
    typer.Option("--quality", "-q", min=1, max=100, help="Higher is larger and closer."),
]


@app.callback()
def _options() -> None:
    """Measure a codec: the quality of its files, its speed, and a page to look at.

    \b
    Example:
      latent-codec-eval demo
      latent-codec-eval images photos/ -o results/
      latent-codec-eval rd photos/ -o results/
      latent-codec-eval bench
    """


@app.command()
def images(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder, pattern or image.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for results.json.")
    ],
    model: Model = None,
    quality: Quality = None,
    step: Annotated[
        float | None, typer.Option("--step", help="Quantiser step instead of a quality.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    lpips_backbone: LpipsBackbone = None,
    lpips_net: LpipsNetwork = LpipsNet.SQUEEZE,
    no_lpips: NoLpips = False,
    limit: Limit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compress, decompress and measure every image of a folder.

    \b
    Example:
      latent-codec-eval images photos/ -o results/ --quality 60
    """
    if quality is not None and step is not None:
        raise typer.BadParameter("give a quality or a step, not both", param_hint="'--step'")
    check_lpips_options(lpips_backbone, no_lpips)
    with console.needs_extra("eval", EXTRA_MODULES):
        from rich.progress import track

        from codec.images import find
        from codec.pipeline import Codec
        from eval.rate_distortion import evaluate_images
        from eval.results import evaluation_table

    paths = find([folder])[:limit]
    output.mkdir(parents=True, exist_ok=True)  # a wrong place must show before the work
    codec = Codec.from_pretrained(model, device=device, dtype=dtype)
    distance, notes = chosen_lpips(lpips_net, lpips_backbone, no_lpips)
    evaluation = evaluate_images(
        codec,
        track(paths, "Evaluating", console=terminal(), transient=True, disable=is_quiet()),
        folder=Path(folder),
        quality=quality,
        step=step,
        distance=distance.to(codec.device) if distance is not None else None,
        notes=notes,
    )
    written = evaluation.write(output)
    if as_json:
        print(evaluation.to_json(), end="")
    else:
        print_table(evaluation_table(evaluation))
        print(f"{evaluation.model}: figures in {written}")
    print_problems(evaluation.notes, evaluation.errors)
    raise typer.Exit(1 if evaluation.errors else 0)


@app.command()
def bench(
    model: Model = None,
    size: Annotated[int, typer.Option("--size", min=8, help="Side of the image in pixels.")] = 512,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed rounds.")] = 5,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Processor threads.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the network beside Stable Diffusion's autoencoder and AutoencoderTiny.

    \b
    Example:
      latent-codec-eval bench --size 512 --runs 5
    """
    if size % 8:
        raise typer.BadParameter(f"found {size}, expected a multiple of 8", param_hint="'--size'")
    from codec.device import choose_device
    from codec.pipeline import Codec
    from eval.benchmark import Contestant, benchmark_table, rivals, run_benchmark

    codec = Codec.from_pretrained(model, device=device)
    ours = Contestant(codec.name, lambda: codec.autoencoder)
    with status() as report:
        benchmark = run_benchmark(
            [ours, *rivals()],
            size=size,
            batch=batch,
            runs=runs,
            threads=threads,
            device=str(choose_device(device)),
            report=report,
        )
    if as_json:
        print(benchmark.to_json(), end="")
        return
    print_table(benchmark_table(benchmark))
    for ratio in benchmark.ratios():
        print(
            f"{ours.name} against {ratio.rival}: {ratio.encode:.1f} times faster to encode, "
            f"{ratio.decode:.1f} to decode, {ratio.round_trip:.1f} there and back"
        )


@app.command()
def demo(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE...]", help="Your own images; else packaged photographs."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for page and files.")
    ] = Path("demo-output"),
    model: Model = None,
    quality: Quality = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Send photographs there and back, and write a page that shows both.

    \b
    Example:
      latent-codec-eval demo -o demo/
      latent-codec-eval demo -o demo/ holiday/*.jpg
    """
    with console.needs_extra("eval", EXTRA_MODULES):
        from codec.images import find
        from codec.pipeline import Codec
        from eval.demo import chosen_samples, demo_table, packaged_samples, run_demo

    samples = chosen_samples(find(images)) if images else packaged_samples()
    codec = Codec.from_pretrained(model, device=device, dtype=dtype)
    with status() as report:
        shown = run_demo(codec, samples, output, quality=quality, report=report)
    print_table(demo_table(shown))
    print(f"page: {shown.page.resolve()}")
    print_problems((), shown.errors)
    raise typer.Exit(1 if shown.errors else 0)


app.command()(rd)
app.command()(coder)
app.command()(loader)
app.command()(distance)
app.command()(prior)
app.command()(prior_speed)
app.command()(prior_tokens)


def main() -> None:
    """Run the `latent-codec-eval` command."""
    console.run(app)
