"""The model card of a token prior: what its run recorded, nothing else."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from codec.prior.directory import CODEC_FOLDER, PriorInfo
from train.prior.token_sections import TokenPriorConfig
from train.release.card import RunRecords
from train.release.portable import portable

CODERS = {
    "": "this prior, given the class",
    "null_": "this prior, without the class",
    "present_": "the codec's own coder of files (estimate of its payload)",
    "tables_": "frequencies of codes in the training images",
    "order0_": "entropy of each image's own codes, its histogram not counted",
}
"""Names in logged figures to what they are of."""
PLACES = ("folders", "lists", "webdataset", "datasets", "exclude")


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What the card states.

    Attributes:
        config: the run's resolved configuration.
        records: what the run wrote down.
        info: of the prior.
        codec: name of the codec.
        sizes: of its codebooks.
    """

    config: TokenPriorConfig
    records: RunRecords
    info: PriorInfo
    codec: str
    sizes: tuple[int, ...]


def token_card(facts: TokenFacts) -> str:
    """The card as Markdown."""
    recipe = yaml.safe_dump(portable(facts.config), sort_keys=False).strip()
    classes = ", ".join(facts.info.class_names)
    parts = (
        f"# {facts.info.name}",
        f"Licence of the weights: {facts.info.license_name}.",
        f"A transformer (GPT-2 of transformers) over the codes of {facts.codec}: it samples images "
        f"of {facts.info.size[0]}x{facts.info.size[1]} pixels token after token"
        + (f", of the classes {classes}." if classes else "."),
        "- Samples: `latent-codec sample --prior DIR`, or `codec.prior.tokens.TokenPrior`.\n"
        f"- The codec: {_codec(facts.info)}.\n"
        "- The network alone: `transformers.GPT2LMHeadModel.from_pretrained(DIR)`.",
        "## Training",
        "\n".join(f"- {fact}" for fact in _training(facts)),
        _held_out(facts),
        "## Recipe",
        f"```yaml\n{recipe}\n```",
    )
    return "\n\n".join(parts) + "\n"


def _codec(info: PriorInfo) -> str:
    return "in the folder `codec`" if info.codec == CODEC_FOLDER else f"{info.codec}, embedded"


def _training(facts: TokenFacts) -> list[str]:
    records, config = facts.records, facts.config
    versions = dict(records.versions)
    processor = versions.pop("processor", "an unknown processor")
    processes = versions.pop("processes", 1)
    several = f"{processes} processes, each on " if processes > 1 else ""
    kept = "with the best held-out figures" if records.is_best else "that are newest"
    mirrored = " and their mirrored copies" if config.data.flip and not config.data.shards else ""
    return [
        f"Data: {records.num_images} images of {_sources(config)}{mirrored}, the square in the "
        f"middle of each; {records.images_seen} sequences were seen.",
        f"Weights: the averaged ones {kept}, after {records.weights_at} sequences, in fp16.",
        f"Time: {records.minutes:.0f} minutes on {several}{processor}, in "
        f"{'bf16' if config.run.mixed_precision == 'bf16' else 'float32'}.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.",
        "Command: `latent-codec-train CONFIG` with the recipe below, then "
        f"`latent-codec-train export RUN -o DIR{' --best' if records.is_best else ''}`.",
    ]


def _held_out(facts: TokenFacts) -> str:
    figures = facts.records.figures
    used = [name for name in CODERS if f"val/{name}bits_per_symbol" in figures]
    if not used:
        return "No held-out images were measured."
    bpp = figures["val/bpp"] / figures["val/bits_per_symbol"]  # codes a pixel
    rows = [["codes cost", "bits a code", "bits a pixel"], ["---", "---:", "---:"]]
    for name in used:
        bits = figures[f"val/{name}bits_per_symbol"]
        rows.append([CODERS[name], f"{bits:.4f}", f"{bits * bpp:.5f}"])
    sizes = " and ".join(f"{size:,}" for size in facts.sizes)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "## Held-out images\n\n"
        f"Logged by the run after {facts.records.figures_at} sequences. A code is one of {sizes}; "
        "the prior's cost is its exact negative log-likelihood, which no coder here makes files "
        f"with.\n\n{table}"
    )


def _sources(config: TokenPriorConfig) -> str:
    if config.data.shards is not None:
        return Path(config.data.shards).name
    places = [getattr(config.data, key) for key in PLACES if key != "exclude"]
    return ", ".join(Path(place).name for group in places for place in group)
