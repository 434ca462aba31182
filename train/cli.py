"""latent-codec-train: train an autoencoder, and export a run as a codec.

`latent-codec-train CONFIG [key=value ...]` trains; `latent-codec-train export RUN -o DIR`
exports. The word `run` in front of a configuration may be left out.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from codec.console import Debug, Force, needs_extra, new_app, run

COMMANDS = ("run", "export")
EXTRA_MODULES = frozenset({"accelerate", "lpips", "pydantic", "torchvision", "yaml"})
app = new_app(
    "Train latent codecs.\n\n"
    "latent-codec-train CONFIG [key=value ...] trains (see 'run --help'); "
    "'export' makes a codec of a run."
)


@app.command("run")
def train(
    config: Annotated[Path, typer.Argument(help="YAML, such as configs/autoencoder/kl-f8d4.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train an autoencoder.

    Example: latent-codec-train configs/autoencoder/kl-f8d4.yaml data.folders=[photos]
        max_minutes=60
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from train.config import load_config

        settings = load_config(config, overrides or [])
        from train.trainer import Trainer

    progress = Trainer(settings, resume=resume).run()
    typer.echo(
        f"{progress.images_seen} images in {progress.seconds / 60:.1f} minutes; next: "
        f"latent-codec-train export {settings.run.output_dir} -o DIR",
        err=True,
    )


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model directory to write.")],
    name: Annotated[
        str | None, typer.Option(help="Name in codec.json; the folder's name by default.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Quantiser step of quality 50, in raw latent units.")
    ] = None,
    default_quality: Annotated[int, typer.Option(min=1, max=100)] = 50,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights.")
    ] = "see the licence of the training images",
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Make a usable codec of a run: averaged weights in fp16, statistics, tables, ids, model card.

    Example: latent-codec-train export runs/kl-f8d4 -o my-codec
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from train.export import export_run

    options = {"name": name, "quality_50_step": step, "default_quality": default_quality}
    export_run(run_dir, output, licence=licence, force=force, **options)
    typer.echo(
        f"wrote {output}; try: latent-codec encode IMAGE -o OUT.lc --model {output}", err=True
    )


def main() -> None:
    """Entry point: a first word that is no command is the configuration of `run`."""
    words = sys.argv[1:]
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        words = ["run", *words]
    run(app, words)


if __name__ == "__main__":
    main()
