"""The model card that an export writes: what the run itself recorded, nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card states.

    Attributes:
        name: the codec's name.
        licence: of the weights.
        config: the run's resolved configuration.
        num_images: training images.
        versions: packages, Python and processor of the run.
        last: last line of the run's log.
        validation: last line of the log with held-out figures, if any.
    """

    name: str
    licence: str
    config: TrainConfig
    num_images: int
    versions: dict[str, str]
    last: dict[str, Any]
    validation: dict[str, Any] | None


def write_card(path: Path, facts: CardFacts) -> None:
    """Write the card as Markdown."""
    path.write_text(render_card(facts), encoding="utf-8")


def render_card(facts: CardFacts) -> str:
    """The card's text."""
    versions = dict(facts.versions)
    processor = versions.pop("processor", "an unknown processor")
    size = facts.config.data.crop_size
    folders = ", ".join(Path(folder).name for folder in facts.config.data.folders)
    facts_list = (
        f"Data: {facts.num_images} images of {folders}; {facts.last['images']} crops of "
        f"{size}x{size} pixels were seen.",
        f"Time: {facts.last['seconds'] / 60:.0f} minutes on {processor}.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "Command: `latent-codec-train CONFIG` with the recipe below, then "
        "`latent-codec-train export RUN -o DIR`.",
    )
    recipe = yaml.safe_dump(_portable(facts.config), sort_keys=False).strip()
    sections = (
        f"# {facts.name}",
        f"Licence of the weights: {facts.licence}.",
        "## Training",
        "\n".join(f"- {fact}" for fact in facts_list),
        _validation(facts),
        "## Recipe",
        f"```yaml\n{recipe}\n```",
    )
    return "\n\n".join(sections) + "\n"


def _portable(config: TrainConfig) -> dict[str, Any]:
    """The configuration with names of folders and lists in place of one machine's paths."""
    recipe = config.model_dump(mode="json", exclude={"run": {"output_dir"}})
    for key in ("folders", "exclude"):
        recipe["data"][key] = [Path(path).name for path in recipe["data"][key]]
    for key in ("validation_folder", "validation_names"):
        path = recipe["run"][key]
        recipe["run"][key] = Path(path).name if path else None
    return recipe


def _validation(facts: CardFacts) -> str:
    if facts.validation is None:
        return "No held-out images were measured."
    figures = {
        name.removeprefix("val/"): value
        for name, value in facts.validation.items()
        if name.startswith("val/")
    }
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items())
    side = 2 * facts.config.data.crop_size
    return f"""## Held-out images

Centre crops of {side}x{side} pixels of images that were not trained on, averaged weights, quantised
latents; the rate is the per-image order-0 entropy, not that of files. Logged by the run.

| figure | value |
| --- | --- |
{rows}"""
