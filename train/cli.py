"""latent-codec-train: train an autoencoder, its entropy model or a prior, export and compare runs.

`latent-codec-train CONFIG [key=value ...]` trains; `latent-codec-train export RUN -o DIR`
exports, `latent-codec-train report RUN ...` compares. The word `run` in front of a configuration
may be left out.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.console import Debug, Force, Json, needs_extra, new_app, print_error, run

if TYPE_CHECKING:
    from train.config import AnyConfig
    from train.loop import TrainingLoop

COMMANDS = ("run", "export", "report")
RUN_OPTIONS = ("--resume", "--dry-run", "--debug")
EXTRA_MODULES = frozenset(
    {
        "accelerate",
        "datasets",
        "lpips",
        "pyarrow",
        "pydantic",
        "torchvision",
        "transformers",
        "yaml",
    }
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
    """Train an autoencoder, its entropy model, or a prior; Ctrl-C saves, --resume goes on.

    Several processes: torchrun --nproc_per_node 2 -m train.cli CONFIG.

    \b
    Example:
      latent-codec-train configs/autoencoder/kl-f8d4.yaml data.folders=[photos] exclude=[] \\
        validation_folder=null validation_names=null max_minutes=60
      latent-codec-train configs/autoencoder/finetune.yaml data.folders=[photos] --dry-run
      latent-codec-train configs/entropy/context-f8d4.yaml codec=my-codec data.folders=[photos]
      latent-codec-train configs/entropy/indices-vq-f8.yaml codec=my-vq data.folders=[photos]
      latent-codec-train configs/prior/clothing.yaml data.folders=[clothes] \
        validation_folder=null
      latent-codec-train runs/kl-f8d4/config.yaml --resume
    """
    with needs_extra("train", EXTRA_MODULES):
        from train.config import load_config

        settings = load_config(config, overrides or [])
        if dry_run:
            from train.records import config_text

            typer.echo(f"# {_describe(settings)}\n{config_text(settings)}", nl=False)
            return
        from train.run_state import OutputDirError

        try:
            trainer = _trainer(settings, resume)
        except OutputDirError as error:  # wrong use: nothing was tried yet
            if debug:
                raise
            print_error(error)
            raise typer.Exit(2) from error
    progress = trainer.run()
    if trainer.accelerator.is_main_process:
        typer.echo(
            f"{progress.images_seen} images in {progress.seconds / 60:.1f} minutes; next: "
            f"latent-codec-train export {settings.run.output_dir} -o DIR",
            err=True,
        )


def _describe(settings: "AnyConfig") -> str:
    """What a run would train, in a line."""
    from train.prior.sections import PriorConfig
    from train.prior.token_sections import TokenPriorConfig
    from train.sections import TrainConfig

    if isinstance(settings, PriorConfig):
        from train.prior_trainer import describe as describe_prior

        return describe_prior(settings)
    if isinstance(settings, TokenPriorConfig):
        from train.token_trainer import describe as describe_tokens

        return describe_tokens(settings)
    if not isinstance(settings, TrainConfig):
        from train.entropy_trainer import describe as describe_entropy

        return describe_entropy(settings)
    from train.build import describe

    return describe(settings)


def _trainer(settings: "AnyConfig", resume: bool) -> "TrainingLoop":
    """The trainer of a kind of configuration."""
    from train.prior.sections import PriorConfig
    from train.prior.token_sections import TokenPriorConfig
    from train.sections import TrainConfig

    if isinstance(settings, PriorConfig):
        from train.prior_trainer import PriorTrainer

        return PriorTrainer(settings, resume=resume)
    if isinstance(settings, TokenPriorConfig):
        from train.token_trainer import TokenTrainer

        return TokenTrainer(settings, resume=resume)
    if not isinstance(settings, TrainConfig):
        from train.entropy_trainer import EntropyTrainer

        return EntropyTrainer(settings, resume=resume)
    from train.trainer import Trainer

    return Trainer(settings, resume=resume)


@app.command()
def export(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|IMAGES...",
            help="Folder of the run; with --tables-for image files, folders or patterns.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model directory to write.")],
    tables_for: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Fit tables to the latents of this autoencoder instead: a directory or hub id.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in codec.json; the folder's name by default.")
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="Quantiser step of quality 50, in raw latent units; by default that of the codec "
            "whose latents these are or which was fine-tuned, or of the noise trained with. With "
            "--tables-for in units of each channel's deviation, by default 0.243."
        ),
    ] = None,
    default_quality: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="By default 50, or that of the codec whose latents these are."
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the weights; by default a hint at where to look for it."),
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--best", help="The weights with the best held-out figure, not the newest."),
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Make a usable codec of a run: averaged weights in fp16, statistics, tables, ids, model card.

    Runs with class labels, single latent vectors or AutoencoderKL become a directory for diffusers
    without tables and ids; its files bring their own tables. A run of an entropy model gives the
    codec that it was trained for, with that model; files made before are still read. A run of a
    prior gives a directory for latent-codec sample.

    With --tables-for, make one of an autoencoder as it is: AutoencoderKL, AutoencoderTiny,
    AutoencoderDC or VQModel. Up to 256 of the images are encoded, of each at most the middle
    1024x1024 pixels; files then need no tables of their own and take fewer bytes.

    \b
    Example:
      latent-codec-train export runs/kl-f8d4 -o my-codec
      latent-codec-train export runs/context-f8d4 -o my-smaller-codec
      latent-codec-train export --tables-for sd-vae photos/ -o sd-codec
    """
    del debug
    with needs_extra("train", EXTRA_MODULES):
        from codec.prior.directory import PriorInfo
        from train.release.entropy import advised_config
        from train.release.export import export_run
        from train.release.foreign import export_tables

    if tables_for is not None:
        if best:
            raise typer.BadParameter("goes with a run only", param_hint="'--best'")
        info = export_tables(
            tables_for,
            sources,
            output,
            name=name,
            quality_50_step=step,
            default_quality=default_quality,
            licence=licence or "see the licence of the model",
            force=force,
        )
    elif len(sources) > 1:
        raise typer.BadParameter("give one run, or images with --tables-for", param_hint="'RUN'")
    else:
        info = export_run(
            Path(sources[0]),
            output,
            name=name,
            quality_50_step=step,
            default_quality=default_quality,
            licence=licence,
            best=best,
            force=force,
        )
    if isinstance(info, PriorInfo):
        typer.echo(
            f"wrote {output}; try: latent-codec sample --prior {output} -n 16 -o OUT", err=True
        )
        return
    own = "" if info else ", whose files bring their own tables"
    typer.echo(
        f"wrote {output}{own}; try: latent-codec encode IMAGE -o OUT.lc --model {output}", err=True
    )
    advised = advised_config(info) if info is not None else None
    if advised is not None:
        typer.echo(
            f"for smaller files train an entropy model: latent-codec-train {advised} "
            f"codec={output}",
            err=True,
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
