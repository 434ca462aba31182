"""The section of a model card that an entropy model gets: what its run recorded, nothing else."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from codec.checkpoint import ModelInfo
from train.entropy.sections import CoderConfig, IndexConfig
from train.release.card import RunRecords
from train.release.portable import PLACES, portable

HEADING = "## Entropy model"
CODERS = {
    "": "context model",
    "linear_": "linear coder",
    "tables_": "frequency tables",
    "order0_": "order-0 entropy",
}
"""Names in logged figures to headings."""


@dataclass(frozen=True, slots=True)
class EntropyFacts:
    """What the section states.

    Attributes:
        config: the run's resolved configuration.
        records: what the run wrote down.
        info: of the codec that is written.
    """

    config: CoderConfig
    records: RunRecords
    info: ModelInfo


def entropy_card(card: str | None, facts: EntropyFacts) -> str:
    """The autoencoder's card with the section in it, in place of an earlier one.

    Args:
        card: Markdown; None for an autoencoder without a card.
        facts: what the section states.
    """
    if card is None:
        card = f"# {facts.info.name}\n\nLicence of the weights: {facts.info.license_name}.\n"
    kept = re.sub(rf"(?ms)^{HEADING}$.*?(?=^## |\Z)", "", card)
    return f"{kept.rstrip()}\n\n{_section(facts)}\n"


def _section(facts: EntropyFacts) -> str:
    recipe = yaml.safe_dump(portable(facts.config), sort_keys=False).strip()
    parts = (
        HEADING,
        f"A context model of the {_coded(facts.config)}, coder {facts.info.coder_id}; the "
        "autoencoder is as it was.",
        "\n".join(f"- {fact}" for fact in _training(facts)),
        _held_out(facts),
        f"```yaml\n{recipe}\n```",
    )
    return "\n\n".join(part for part in parts if part)


def _coded(config: CoderConfig) -> str:
    return "codes' indices" if isinstance(config, IndexConfig) else "quantised latents"


def _training(facts: EntropyFacts) -> list[str]:
    records, data = facts.records, facts.config.data
    versions = dict(records.versions)
    processor = versions.pop("processor", "an unknown processor")
    processes = versions.pop("processes", 1)
    several = f"{processes} processes, each on " if processes > 1 else ""
    kept = "with the best held-out figures" if records.is_best else "that are newest"
    stated = [
        f"Data: latents of {records.num_images} images of {_sources(facts.config)}; "
        f"{records.images_seen} crops of {data.latent_crop}x{data.latent_crop} cells were seen.",
        f"Weights: the averaged ones {kept}, after {records.weights_at} crops, as integers.",
        f"Time: {records.minutes:.0f} minutes on {several}{processor}.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "Command: `latent-codec-train CONFIG` with the recipe below, then "
        f"`latent-codec-train export RUN -o DIR{' --best' if records.is_best else ''}`.",
    ]
    if earlier := facts.info.earlier_coders:
        stated.append(f"Files made with an earlier coder are still read: {', '.join(earlier)}.")
    return stated


def _sources(config: CoderConfig) -> str:
    if config.data.factors:
        return "rendered factors"
    places = [getattr(config.data, key) for key in PLACES if key != "exclude"]
    return ", ".join(Path(place).name for group in places for place in group)


def _held_out(facts: EntropyFacts) -> str:
    """A table of bits a symbol, a quality a row; codes have none."""
    figures = facts.records.figures
    used = [name for name in CODERS if f"val/{name}bits_per_symbol" in figures]
    if not used:
        return "No held-out images were measured."
    qualities: tuple[float, ...] = ()
    if not isinstance(facts.config, IndexConfig):
        qualities = facts.config.run.validation_qualities
    rows = [["quality", *(CODERS[name] for name in used)], ["---:"] * (1 + len(used))]
    for label, suffix in [(f"{q:g}", f"_q{q:g}") for q in qualities] or [("-", "")]:
        key = f"bits_per_symbol{suffix}"
        rows.append([label, *(f"{figures[f'val/{name}{key}']:.4f}" for name in used)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "Bits a symbol of held-out images, logged by the run after "
        f"{facts.records.figures_at} crops: the context model in floats, "
        f"{_rivals(facts.config)}.\n\n"
        f"{table}"
    )


def _rivals(config: CoderConfig) -> str:
    if isinstance(config, IndexConfig):
        return (
            "frequency tables of the training images, and the entropy of each image's own indices, "
            "codebook by codebook"
        )
    return (
        "a coder of linear predictors, and the entropy of each image's own symbols, channel by "
        "channel"
    )
