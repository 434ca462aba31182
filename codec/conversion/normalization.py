"""What makes latents unit-variance, by each of the formulas that pipelines use.

Legend: C latent channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from codec.conversion.errors import ConversionError


class Formula(StrEnum):
    """How a diffusion model's latents z come of raw ones.

    FACTOR: z = raw * scaling_factor; Stable Diffusion 1 and 2, LDM, DiT.
    SHIFT: z = (raw - shift_factor) * scaling_factor; Stable Diffusion 3, and `Codec.encode`.
    CHANNELS: z = (raw - latents_mean) / latents_std.
    XL: z = (raw - latents_mean) * scaling_factor / latents_std; SDXL where it has statistics.
    """

    FACTOR = "factor"
    SHIFT = "shift"
    CHANNELS = "channels"
    XL = "xl"


@dataclass(frozen=True, slots=True)
class Normalization:
    """z = (raw - mean) / std in each channel.

    Attributes:
        mean: Of C channels.
        std: Likewise, all above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.mean) == len(self.std) > 0
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ConversionError(
                f"found means {list(self.mean)} and deviations {list(self.std)} of latents, "
                "expected finite numbers and deviations above 0; measure them anew"
            )

    @classmethod
    def by(cls, formula: Formula, statistics: Mapping[str, Any], num_channels: int) -> Self:
        """Returns what a formula makes of statistics under their names in config.json.

        Raises:
            ConversionError: The statistics lack one that the formula needs.
        """
        factor = _number("scaling_factor", statistics)
        if formula in (Formula.FACTOR, Formula.SHIFT):
            shift = 0.0 if formula is Formula.FACTOR else _number("shift_factor", statistics)
            return cls((shift,) * num_channels, (1 / factor,) * num_channels)
        means = _list("latents_mean", statistics, num_channels)
        deviations = _list("latents_std", statistics, num_channels)
        scale = factor if formula is Formula.XL else 1.0
        return cls(means, tuple(one / scale for one in deviations))


def best_formula(statistics: Mapping[str, Any]) -> Formula:
    """Returns the most exact formula that statistics serve.

    Raises:
        ConversionError: They say nothing.
    """
    if statistics.get("latents_mean") is not None and statistics.get("latents_std") is not None:
        return Formula.CHANNELS
    if statistics.get("scaling_factor", 1.0) != 1.0 or statistics.get("shift_factor"):
        return Formula.SHIFT
    raise ConversionError(
        "found no statistics of latents in the model's config.json, or neutral ones, expected some "
        "to fold; give --stats DATASET, a folder that latent-codec dataset made"
    )


def dataset_statistics(dataset: Path, latent_id: str) -> dict[str, Any]:
    """Returns the statistics that a dataset's manifest holds, by their names in config.json.

    Args:
        dataset: A folder that `latent-codec dataset` or `import` made.
        latent_id: Of the model that the latents must be of.

    Raises:
        ConversionError: They are those of another model, or of no latents at all.
        ShardError: There is no manifest.
    """
    from codec.shards.manifest import Manifest

    manifest = Manifest.read(dataset)
    if manifest.model.latent_id != latent_id:
        raise ConversionError(
            f"found latents of {manifest.model.name} ({manifest.model.latent_id or 'no id'}) in "
            f"{dataset}, expected those of the model to fold ({latent_id})"
        )
    if not manifest.num_records:
        raise ConversionError(f"found no latents in {dataset}, expected some to measure")
    found = manifest.statistics
    return {
        "scaling_factor": found.scaling_factor,
        "shift_factor": found.shift_factor,
        "latents_mean": found.mean.tolist(),
        "latents_std": found.std.tolist(),
    }


def _number(key: str, statistics: Mapping[str, Any]) -> float:
    neutral = 1.0 if key == "scaling_factor" else 0.0
    value = statistics.get(key)
    number = neutral if value is None else float(value)
    if key == "scaling_factor" and number == 0:
        raise ConversionError("found scaling_factor 0, expected another number; mend config.json")
    return number


def _list(key: str, statistics: Mapping[str, Any], num_channels: int) -> tuple[float, ...]:
    values = statistics.get(key)
    if not isinstance(values, list | tuple) or len(values) != num_channels:
        raise ConversionError(
            f"found {key} {values!r}, expected a number for each of {num_channels} channels; "
            "choose another --formula or give --stats DATASET"
        )
    return tuple(map(float, values))
