"""What a job is asked for, what of it decides the output, and what must not change on resuming.

job.json lies in the dataset from its first moment on. It holds everything that decides the bytes of
the shards; an interrupted job goes on only where all of it is the same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codec import __version__, quantizer
from codec.architectures import downscale_factor, latent_channels, read_config
from codec.dataset.coding import make_packer
from codec.dataset.encoder import ModelSpec, model_codes
from codec.dataset.items import Source
from codec.dataset.pieces import Work
from codec.dataset.plan import PlanSummary
from codec.dataset.preprocess import Preprocessing
from codec.errors import LatentCodecError
from codec.latents import Scaling
from codec.shards.entries import ModelIds
from codec.shards.forms import Content, ShardForm
from codec.shards.layout import JOB_FILE, durable_output

FORMAT = "latent-codec job"
VERSION = 1

# What people call the parts of job.json that must stay, in the order in which they are compared.
_NAMES = {
    "latent_id": "the model",
    "coder_id": "the model's entropy coder",
    "dtype": "the dtype",
    "container": "the container",
    "content": "the content",
    "posterior": "the posterior",
    "step": "the quantiser step",
    "shard_images": "the images of a shard",
    "records_per_member": "the records of a member",
}


class JobError(LatentCodecError):
    """A job cannot be begun, or not be gone on with; the message says what is in its way."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What decides the output of a job, beside the source.

    Attributes:
        model: What encodes.
        preprocessing: What pixels it sees.
        form: Of the shards.
        step: Quantiser step of `.lc` files in units of 2**-16; 0 for other content and for codes.
        quality: What that step is called; None where it is 0.
        batch_size: Most images that the network sees at once.
        shard_images: Source images of a shard.
        records_per_member: See `ShardWriter`.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    form: ShardForm
    step: int
    quality: float | None
    batch_size: int
    shard_images: int
    records_per_member: int

    @property
    def work(self) -> Work:
        """What workers need to know of it."""
        return Work(self.model, self.preprocessing, self.form, self.step, self.batch_size)


def settle_step(
    model: ModelSpec, content: Content, quality: float | None, step: float | None
) -> tuple[int, float | None]:
    """Returns the quantiser step in units of 2**-16 and the quality that it is.

    Args:
        model: What encodes.
        content: Of the shards.
        quality: 1 to 100; None for the model's own.
        step: Instead of a quality.

    Raises:
        QuantizerError: A value is out of range, or the model has codes.
        JobError: There is nothing to quantise.
    """
    if content is not Content.LC:
        if quality is not None or step is not None:
            raise JobError(
                f"found a {'quality' if step is None else 'step'} for latents as {content.value}, "
                "which are not quantised; leave it out, or leave --raw out"
            )
        return 0, None
    info = model.info
    packer = make_packer(info, model_codes(info.directory))
    units = packer.step_units(quality, step)
    if info.quality_50_step is None:
        return units, None
    return units, round(quantizer.quality_of_step(units, info.quality_50_step), 2)


def describe_job(settings: JobSettings, source: Source, plan: PlanSummary) -> dict[str, Any]:
    """Returns the content of job.json."""
    info, config = settings.model.info, read_config(settings.model.info.directory)
    scaling = Scaling.of(config)
    is_lc = settings.form.content is Content.LC
    return {
        "format": FORMAT,
        "version": VERSION,
        "created_by": f"latent-codec {__version__}",
        "model": ModelIds(
            info.name, info.latent_id, info.coder_id if is_lc else None, info.decoder_id
        ).to_json(),
        "latent_channels": latent_channels(config),
        "factor": downscale_factor(config),
        "scaling": {
            "shift_factor": scaling.shift_factor,
            "scaling_factor": scaling.scaling_factor,
        },
        **settings.form.to_json(),
        "quality": settings.quality,
        "step": settings.step or None,
        "dtype": settings.model.dtype,
        "preprocessing": settings.preprocessing.to_mapping(),
        "batch_size": settings.batch_size,
        "shard_images": settings.shard_images,
        "records_per_member": settings.records_per_member,
        "source": {**source.describe(), **asdict(plan)},
    }


def plan_of(job: Mapping[str, Any]) -> PlanSummary:
    """Returns the summary of the plan that a job began with."""
    source = job["source"]
    return PlanSummary(**{name: source[name] for name in PlanSummary.__slots__})


def manifest_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `finish_dataset` is told: the job, and all that made the latents together."""
    made = {"computed_in": job["dtype"], "source": job["source"]}
    return {**job, "preprocessing": {**job["preprocessing"], **made}}


def read_job(directory: Path) -> dict[str, Any] | None:
    """Returns the content of job.json; None where no job was begun.

    Raises:
        JobError: It is damaged, or newer than this release.
    """
    path = directory / JOB_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise JobError(
            f"{path} is no JSON ({error}): give --overwrite, or another folder"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise JobError(f"{path} is not that of a dataset job: give another folder")
    if content.get("version") != VERSION:
        raise JobError(
            f"{path}: found version {content.get('version')!r}, expected {VERSION}; update "
            "latent-codec, or give another folder"
        )
    return content


def write_job(directory: Path, job: Mapping[str, Any]) -> None:
    """Writes job.json, whole or not at all.

    Raises:
        OSError: The disk is full, or does not take the file.
    """
    with durable_output(directory / JOB_FILE) as stream:
        stream.write((json.dumps(job, indent=1, ensure_ascii=False) + "\n").encode())


def refuse_changes(directory: Path, old: Mapping[str, Any], settings: JobSettings) -> None:
    """Compares the settings with those that a dataset was begun with.

    Raises:
        JobError: They differ; the message names what changed.
    """
    changes = _changes(_decisive(old), _decisive(_as_job(settings)))
    if changes:
        raise JobError(
            f"{directory} was begun with other settings: {'; '.join(changes)}; give the same ones "
            "to go on, --overwrite to begin anew, or another folder"
        )


def _as_job(settings: JobSettings) -> dict[str, Any]:
    """The decisive part of job.json for settings."""
    info = settings.model.info
    return {
        "model": {
            "name": info.name,
            "latent_id": info.latent_id,
            "coder_id": info.coder_id if settings.form.content is Content.LC else None,
        },
        **settings.form.to_json(),
        "step": settings.step or None,
        "dtype": settings.model.dtype,
        "preprocessing": settings.preprocessing.to_mapping(),
        "shard_images": settings.shard_images,
        "records_per_member": settings.records_per_member,
    }


def _decisive(job: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay, by the names that people know."""
    model = job["model"]
    flat = {**job, "latent_id": model["latent_id"], "coder_id": model["coder_id"]}
    found = {name: flat[key] for key, name in _NAMES.items()}
    if found["the model"] is not None:
        found["the model"] = f"{model['name']} ({model['latent_id']})"
    return found | {f"--{key}": value for key, value in job["preprocessing"].items()}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', '-') if name.startswith('--') else name} was "
        f"{_shown(old.get(name))} and is now {_shown(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
