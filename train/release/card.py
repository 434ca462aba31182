"""The model card that an export writes: what the run itself recorded, nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from train.release.portable import PLACES, portable
from train.report import last_validation, read_json_record, read_log
from train.sections import TrainConfig
from train.state import read_best, read_progress


@dataclass(frozen=True, slots=True)
class RunRecords:
    """What a run wrote down about the weights that are exported.

    Attributes:
        num_images: training images.
        images_seen: crops, at the end of the run.
        minutes: of training.
        versions: packages, Python, processor and processes.
        weights_at: crops seen by the weights.
        is_best: whether these are the weights with the best held-out figures, not the newest.
        figures: held-out and health figures by logged name; empty if nothing was measured.
        figures_at: crops seen by the weights that were measured.
    """

    num_images: int
    images_seen: int
    minutes: float
    versions: dict[str, Any]
    weights_at: int
    is_best: bool
    figures: dict[str, float]
    figures_at: int


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card states.

    Attributes:
        name: the model's name.
        licence: of the weights.
        config: the run's resolved configuration.
        records: what the run wrote down.
        spoken: the model whose latents these are, if they are not its own.
        has_tables: whether the model has tables for its files, which else bring their own.
    """

    name: str
    licence: str
    config: TrainConfig
    records: RunRecords
    spoken: str | None
    has_tables: bool


def read_records(run_dir: Path, checkpoint: Path, *, best: bool) -> RunRecords:
    """What a run wrote down about itself and a checkpoint.

    Raises:
        ReportError: a record is missing.
    """
    lines = read_log(run_dir)
    validation = last_validation(lines) or {}
    weights_at = read_progress(checkpoint).images_seen
    return RunRecords(
        num_images=read_json_record(run_dir, "data.json")["num_images"],
        images_seen=lines[-1]["images"],
        minutes=lines[-1]["seconds"] / 60,
        versions=read_json_record(run_dir, "versions.json"),
        weights_at=weights_at,
        is_best=best,
        figures=(read_best(run_dir) or {}) if best else validation,
        figures_at=weights_at if best else validation.get("images", 0),
    )


def write_card(path: Path, facts: CardFacts) -> None:
    """Write the card as Markdown."""
    path.write_text(render_card(facts), encoding="utf-8")


def render_card(facts: CardFacts) -> str:
    """The card's text."""
    recipe = yaml.safe_dump(portable(facts.config), sort_keys=False).strip()
    sections = (
        f"# {facts.name}",
        f"Licence of the weights: {facts.licence}.",
        "\n".join(f"- {fact}" for fact in _uses(facts)),
        "## Training",
        "\n".join(f"- {fact}" for fact in _training(facts)),
        _held_out(facts),
        _health(facts),
        "## Recipe",
        f"```yaml\n{recipe}\n```",
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _uses(facts: CardFacts) -> list[str]:
    uses = ["Latents: `codec.Codec.from_pretrained(DIR)`, or diffusers with DIR as a `vae`."]
    own = "" if facts.has_tables else ", which bring their own tables"
    uses.append(f"Files{own}: `latent-codec encode IMAGE -o OUT.lc --model DIR`.")
    if facts.spoken is not None:
        uses.append(f"The latents are those of {facts.spoken}, with its statistics.")
    return uses


def _training(facts: CardFacts) -> list[str]:
    records = facts.records
    versions = dict(records.versions)
    processor = versions.pop("processor", "an unknown processor")
    processes = versions.pop("processes", 1)
    several = f"{processes} processes, each on " if processes > 1 else ""
    size = facts.config.data.crop_size
    kept = "with the best held-out figures" if records.is_best else "that are newest"
    return [
        f"Data: {records.num_images} images of {_sources(facts.config)}; {records.images_seen} "
        f"crops of {size}x{size} pixels were seen.",
        f"Weights: the averaged ones {kept}, after {records.weights_at} crops.",
        f"Time: {records.minutes:.0f} minutes on {several}{processor}.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "Command: `latent-codec-train CONFIG` with the recipe below, then "
        f"`latent-codec-train export RUN -o DIR{' --best' if records.is_best else ''}`.",
    ]


def _sources(config: TrainConfig) -> str:
    if config.data.factors:
        return "rendered factors"
    places = [getattr(config.data, key) for key in PLACES if key != "exclude"]
    return ", ".join(Path(place).name for group in places for place in group)


def _held_out(facts: CardFacts) -> str:
    figures = _named(facts.records.figures, "val/")
    if not figures:
        return "No held-out images were measured."
    return f"""## Held-out images

Measured by the run after {facts.records.figures_at} crops, on images that were not trained on:
averaged weights, quantised latents, 8-bit pixels. The rate is an order-0 entropy, not that of
files.

{_table(figures)}"""


def _health(facts: CardFacts) -> str:
    figures = _named(facts.records.figures, "health/")
    if not figures:
        return ""
    return f"""## Latents

Of the same images, unquantised; rates in bits an element, the others shares or in raw units.

{_table(figures)}"""


def _named(figures: dict[str, float], group: str) -> dict[str, float]:
    return {
        name.removeprefix(group): value for name, value in figures.items() if name.startswith(group)
    }


def _table(figures: dict[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items())
    return f"| figure | value |\n| --- | --- |\n{rows}"
