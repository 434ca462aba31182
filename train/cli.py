"""latent-codec-train: train an autoencoder, export a run as a codec, compare runs.

`latent-codec-train CONFIG [key=value ...]` trains; `latent-codec-train export RUN -o DIR`
exports, `latent-codec-train report RUN ...` compares. The word `run` in front of a configuration
may be left out.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from codec.console import Debug, Force, Json, needs_extra, new_app, run

COMMANDS = ("run", "export", "report")
RUN_OPTIONS = ("--resume", "--dry-run", "--debug")
EXTRA_MODULES = frozenset(
    {"accelerate", "datasets", "lpips", "pyarrow", "pydantic", "torchvision", "yaml"}
)
app = new_app(
    "Train latent codecs.\n\n"
    "latent-codec-train CONFIG [key=value ...] [--resume] trains (see 'run --help'); "
    "'export' makes a codec of a run, 'report' compares runs."
)


@app.command("run")
def train(
    config: Annotated[Path, typer.Argument(help="YAML, such as configs/autoencoder/kl-f8d4.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint that is whole.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print every setting, images, parameters; do not train."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Train an autoencoder; Ctrl-C saves, --resume goes on.

    Several processes: torchrun --nproc_per_node 2 -m train.cli CONFIG.

    \b
    Example:
      latent-codec-train configs/autoencoder/kl-f8d4.yaml data.folders=[photos] exclude=[] \\
        validation_folder=null validation_names=null max_minutes=60
      latent-codec-train configs/autoencoder/finetune.yaml data.folders=[photos] --dry-run
      latent-codec-train runs/kl-f8d4/config.yaml --resume
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from train.config import load_config

        settings = load_config(config, overrides or [])
        if dry_run:
            from train.build import describe
            from train.records import config_text

            typer.echo(f"# {describe(settings)}\n{config_text(settings)}", nl=False)
            return
        from train.trainer import Trainer

        trainer = Trainer(settings, resume=resume)
    progress = trainer.run()
    if trainer.accelerator.is_main_process:
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
        float | None,
        typer.Option(
            help="Quantiser step of quality 50, in raw latent units; by default that of the codec "
            "whose latents these are or which was fine-tuned, or of the noise trained with."
        ),
    ] = None,
    default_quality: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="By default 50, or that of the codec whose latents these are."
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights.")
    ] = "see the licence of the training images",
    best: Annotated[
        bool,
        typer.Option("--best", help="The weights with the best held-out figure, not the newest."),
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Make a usable codec of a run: averaged weights in fp16, statistics, tables, ids, model card.

    Latents that files cannot carry (codes, class labels, single vectors, AutoencoderKL) become a
    directory for diffusers, without tables and ids.

    \b
    Example:
      latent-codec-train export runs/kl-f8d4 -o my-codec
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from train.release.export import export_run

    info = export_run(
        run_dir,
        output,
        name=name,
        quality_50_step=step,
        default_quality=default_quality,
        licence=licence,
        best=best,
        force=force,
    )
    if info is None:
        typer.echo(
            f"wrote {output}, which diffusers loads; it has no entropy tables, for files of such "
            "latents come with a later release",
            err=True,
        )
    else:
        typer.echo(
            f"wrote {output}; try: latent-codec encode IMAGE -o OUT.lc --model {output}", err=True
        )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs from their own records: a Markdown table of held-out figures and health.

    \b
    Example:
      latent-codec-train report runs/kl-f8d4 runs/vq-f8
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from train.report import render_json, render_table, report_run

    reports = [report_run(run_dir) for run_dir in runs]
    typer.echo(render_json(reports) if as_json else render_table(reports))


def main() -> None:
    """Entry point: a first word that is no command belongs to `run`."""
    words = sys.argv[1:]
    is_option = words[:1] != [] and words[0].startswith("-")
    if words and words[0] not in COMMANDS and (not is_option or words[0] in RUN_OPTIONS):
        words = ["run", *words]
    run(app, words)


if __name__ == "__main__":
    main()
