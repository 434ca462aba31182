"""How far samples are from real images, beside what the figures are to be read against.

Legend: N images, D features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from eval.distribution.features import Features
from eval.distribution.frechet import frechet_distance
from eval.distribution.kernel_distance import equal_numbers, kernel_distance
from eval.priors.baselines import gaussian_latents, take_turns
from eval.priors.encoded import EncodedSet, Instruments, decoded_features
from eval.priors.results import GAUSSIANS, SAMPLES, SetDistance

TRAINING = "training images"
TRAINING_AS_SAMPLES = "training images, classes in equal numbers"
TRAINING_DECODED = "the same through the codec"
DECODED = "the split itself through the codec"

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Contestant:
    """Features (N, D) of a set; `made_from` names the split whose images it was made from."""

    name: str
    features: Features
    made_from: str | None = None


def num_decoded(samples: EncodedSet, references: Mapping[str, EncodedSet]) -> int:
    """Return how many latents `measure_distances` decodes, for a progress bar."""
    return 3 * len(samples) + sum(map(len, references.values()))


def measure_distances(
    samples: EncodedSet,
    training: EncodedSet,
    references: Mapping[str, EncodedSet],
    tools: Instruments,
    *,
    seed: int = 0,
    advance: Advance = lambda: None,
) -> list[SetDistance]:
    """Measure samples and baselines against splits, by as many images each.

    Args:
        samples: of the prior.
        training: the training split.
        references: splits by name.
        tools: what to measure with.
        seed: of choices, noise and the bootstrap.
        advance: is called after each decoded image.
    """
    contestants = list(_contestants(samples, training, tools, seed, advance))
    contestants += [
        _Contestant(DECODED, decoded_features(split.latents, tools, advance), name)
        for name, split in references.items()
    ]
    found = []
    for name, split in references.items():
        for contestant in contestants:
            if contestant.made_from not in (None, name):
                continue
            first, second = equal_numbers(contestant.features, split.features, seed=seed)
            found.append(
                SetDistance(
                    images=contestant.name,
                    reference=name,
                    kernel=kernel_distance(
                        first, second, paired=contestant.made_from is not None, seed=seed
                    ),
                    frechet=frechet_distance(first, second),
                )
            )
    return found


def _contestants(
    samples: EncodedSet, training: EncodedSet, tools: Instruments, seed: int, advance: Advance
) -> Iterator[_Contestant]:
    number = len(samples)
    yield _Contestant(SAMPLES, samples.features)
    for name, by_position in zip(GAUSSIANS, (True, False), strict=True):
        latents = gaussian_latents(training.latents, number, by_position=by_position, seed=seed)
        yield _Contestant(name, decoded_features(latents, tools, advance))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(training), min(number, len(training)), replace=False)
    yield _Contestant(TRAINING, training.features[chosen])
    balanced = take_turns(training.images.labels, number, seed=seed)
    yield _Contestant(TRAINING_AS_SAMPLES, training.features[balanced])
    yield _Contestant(
        TRAINING_DECODED, decoded_features(training.latents[balanced], tools, advance)
    )
