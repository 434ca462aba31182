"""The `latent-codec dataset` command. Heavy imports wait until it is known what is wanted."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.console import Debug, Device, Dtype, Json, Model, print_error, print_warning
from codec.dataset.engines import Engine, Running

if TYPE_CHECKING:
    from codec.dataset.items import Source
    from codec.dataset.job import JobSettings
    from codec.dataset.running import Report

_SHARD_IMAGES = 1024
_RECORDS_PER_MEMBER = 256
_BATCH_SIZE, _BATCH_SIZE_GPU = 8, 32


class Kind(StrEnum):
    """What a source is; see `codec.dataset.options`."""

    AUTO = "auto"
    FOLDER = "folder"
    LIST = "list"
    MANIFEST = "manifest"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    HUGGINGFACE = "huggingface"


class FolderLabels(StrEnum):
    """Which folder names the class of an image."""

    PARENT = "parent"
    TOP = "top"
    NONE = "none"


class ContainerName(StrEnum):
    """What holds the records."""

    TAR = "tar"
    PARQUET = "parquet"


class Raw(StrEnum):
    """Numbers instead of `.lc` files."""

    FP16 = "fp16"
    FP32 = "fp32"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder, list, CSV or JSONL manifest, tars, Parquet, HF dataset."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DST", help="Folder of the dataset.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure a sample and say what the job would take.")
    ] = False,
    plan_images: Annotated[
        int | None,
        typer.Option("--plan-images", min=1, help="With --plan: as if SRC had so many images."),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="What SRC is.")] = Kind.AUTO,
    split: Annotated[
        str | None, typer.Option("--split", help="Of a Hugging Face dataset; or all.")
    ] = None,
    image_column: Annotated[str | None, typer.Option("--image-column")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column")] = None,
    caption_column: Annotated[str | None, typer.Option("--caption-column")] = None,
    key_column: Annotated[
        str | None, typer.Option("--key-column", help="Column that names the records.")
    ] = None,
    folder_labels: Annotated[
        FolderLabels, typer.Option("--folder-labels", help="Which folder is the class.")
    ] = FolderLabels.PARENT,
    captions: Annotated[bool, typer.Option("--captions/--no-captions")] = True,
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of the square in pixels; without it images are whole."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Scale the longer side to --size, cut nothing.")
    ] = False,
    buckets: Annotated[
        bool, typer.Option("--buckets", help="Cut to shapes of the same area, as SDXL.")
    ] = False,
    crops: Annotated[
        int, typer.Option("--crops", min=1, help="Records an image; more than 1 are random.")
    ] = 1,
    random_crop: Annotated[
        bool, typer.Option("--random-crop", help="Crop at random, not in the middle.")
    ] = False,
    min_scale: Annotated[
        float, typer.Option("--min-scale", help="Least side of random crops, of the largest.")
    ] = 0.5,
    flip: Annotated[bool, typer.Option("--flip", help="Add a mirrored copy of each.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of random crops.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Images with alpha or further frames are errors.")
    ] = False,
    model: Model = None,
    quality: Annotated[
        float | None,
        typer.Option("--quality", "-q", min=1, max=100, help="Of .lc files; higher is closer."),
    ] = None,
    step: Annotated[
        float | None, typer.Option("--step", help="Quantiser step instead of a quality.")
    ] = None,
    raw: Annotated[
        Raw | None, typer.Option("--raw", help="Latents as numbers instead of .lc files.")
    ] = None,
    posterior: Annotated[
        bool, typer.Option("--posterior", help="Log-variances beside them, with --raw.")
    ] = False,
    container: Annotated[
        ContainerName, typer.Option("--container", help="WebDataset tars or Parquet files.")
    ] = ContainerName.TAR,
    shard_images: Annotated[
        int, typer.Option("--shard-images", min=1, help="Source images of a shard.")
    ] = _SHARD_IMAGES,
    records_per_member: Annotated[
        int,
        typer.Option("--records-per-member", min=1, help="1 for tars that any loader understands."),
    ] = _RECORDS_PER_MEMBER,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images at once; cut when memory runs out."),
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="What does the work.")] = Engine.LOCAL,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; one a core.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Cluster; without it one starts here.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option("--gpus-per-worker", help="Of a Ray actor; 1 where there are.")
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option("--max-errors", min=0, help="Stop when more images fail.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the dataset in DST and begin anew.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say how long the stages took.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode many images into a dataset of latents; started again, it goes on.

    Nothing is lost when it is killed: the same command does what is left to do. Images that cannot
    be read are listed in DST/errors.jsonl, and make the exit code 1.

    \b
    Example:
      latent-codec dataset photos/ -o latents/ --size 512
      latent-codec dataset 'shards/*.tar' -o latents/ --size 512 --buckets --flip
      latent-codec dataset list.csv -o latents/ --raw fp16 --model DIR --engine ray
      latent-codec dataset photos/ --size 512 --plan
    """
    is_quantised = quality is not None or step is not None
    _check(output, plan, raw, posterior, engine, ray_address, gpus_per_worker, is_quantised)
    if step is not None and not 0 < step < 65536:
        raise typer.BadParameter(
            f"found {step}, expected a number above 0 and below 65536", param_hint="'--step'"
        )
    from codec.dataset.local import PRELOAD
    from codec.dataset.workers import warm_up

    if engine is Engine.LOCAL and not plan:
        warm_up(PRELOAD)  # imports torch for the workers while this process does it for itself
    from codec.dataset.encoder import find_model
    from codec.dataset.job import JobSettings, settle_step
    from codec.dataset.options import SourceOptions
    from codec.dataset.preprocess import Preprocessing, PreprocessingError
    from codec.dataset.sources import open_source
    from codec.shards.forms import Container, Content, ShardForm

    options = SourceOptions(
        kind=kind.value,
        split=split,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        key_column=key_column,
        folder_labels=folder_labels.value,
        captions=captions,
    )
    try:
        preprocessing = Preprocessing(
            size=size,
            fit="fit" if fit else "crop",
            buckets=buckets,
            crops=crops,
            crop_mode="random" if random_crop or crops > 1 else "center",
            min_scale=min_scale,
            flip=flip,
            seed=seed,
            strict=strict,
        )
    except PreprocessingError as error:
        raise typer.BadParameter(str(error)) from None
    content = Content.LC
    if raw is not None:
        content = Content.FLOAT16 if raw in (Raw.FP16, Raw.FLOAT16) else Content.FLOAT32
    form = ShardForm(Container(container.value), content, posterior)
    chosen = find_model(
        model, _own_device(device), dtype, posterior=posterior, is_here=ray_address is None
    )
    units, known_quality = settle_step(chosen, content, quality, step)
    default_batch = _BATCH_SIZE if chosen.device.startswith("cpu") else _BATCH_SIZE_GPU
    settings = JobSettings(
        model=chosen,
        preprocessing=preprocessing,
        form=form,
        step=units,
        quality=known_quality,
        batch_size=batch_size or default_batch,
        shard_images=shard_images,
        records_per_member=records_per_member,
    )
    running = Running(
        engine, workers, ray_address, gpus_per_worker, max_errors, overwrite, not as_json
    )

    def opened() -> "Source":
        return open_source(source, options)

    if plan:
        _plan(opened(), settings, plan_images, as_json)
        return
    assert output is not None
    from codec.dataset.running import run_job

    report = run_job(opened, output, settings, running)
    if int(os.environ.get("RANK", "0")) == 0:
        _tell(report, output, profile, as_json)
    raise typer.Exit(1 if report.manifest.num_errors else 0)


def _check(
    output: Path | None,
    plan: bool,
    raw: Raw | None,
    posterior: bool,
    engine: Engine,
    ray_address: str | None,
    gpus_per_worker: float | None,
    is_quantised: bool,
) -> None:
    """Refuses options that do not go together.

    Raises:
        typer.BadParameter: They do not.
    """
    if output is None and not plan:
        raise typer.BadParameter("found none, expected a folder, or --plan", param_hint="'-o'")
    if posterior and raw is None:
        raise typer.BadParameter(
            "log-variances do not go into .lc files: give --raw fp16 or fp32 too",
            param_hint="'--posterior'",
        )
    if raw is not None and is_quantised:
        raise typer.BadParameter(
            "numbers are not quantised: leave --quality and --step out", param_hint="'--raw'"
        )
    if engine is not Engine.RAY and (ray_address is not None or gpus_per_worker is not None):
        raise typer.BadParameter("--ray-address and --gpus-per-worker go with --engine ray")
    if engine is Engine.RAY and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter(
            "Ray spreads the work by itself: start it as one process", param_hint="'--engine'"
        )


def _own_device(device: str | None) -> str | None:
    """The device of this process: the launcher's processes share the GPUs of their machine."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device not in (None, "cuda") or local_rank is None:
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    return f"cuda:{int(local_rank) % torch.cuda.device_count()}"


def _plan(source: "Source", settings: "JobSettings", num_images: int | None, as_json: bool) -> None:
    """Prints what the job would take and leave."""
    from codec.dataset.estimate import estimate_job

    for note in source.notes:
        print_warning(note)
    estimate = estimate_job(source, settings, num_images=num_images)
    print(json.dumps(estimate.to_mapping()) if as_json else "\n".join(estimate.lines()))


def _tell(report: "Report", output: Path, profile: bool, as_json: bool) -> None:
    """Prints what was done."""
    manifest = report.manifest
    if as_json:
        content: dict[str, object] = {
            "directory": str(output),
            "was_finished": report.was_finished,
            "images": manifest.num_images,
            "records": manifest.num_records,
            "errors": manifest.num_errors,
            "shards": len(manifest.shards),
            "bytes": manifest.size_bytes,
            "payload_bytes": manifest.payload_bytes,
            "retried_in_float32": report.num_retried,
            "batch_limit": report.batch_limit,
        }
        if report.profile is not None:
            content["profile"] = report.profile.to_mapping()
        print(json.dumps(content))
    else:
        before = "was finished already: " if report.was_finished else ""
        each = manifest.size_bytes / max(manifest.num_records, 1)
        print(
            f"{output}: {before}{manifest.num_images:,} images, {manifest.num_records:,} records "
            f"in {len(manifest.shards):,} shards, {manifest.size_bytes / 1e6:,.1f} MB "
            f"({each:,.0f} bytes a record)"
        )
        if profile and report.profile is not None:
            print("\n".join(report.profile.lines()))
    if manifest.num_errors:
        print_error(
            f"{manifest.num_errors:,} images gave no latents, or not all; "
            f"{output / 'errors.jsonl'} says which and why"
        )
