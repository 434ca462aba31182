"""What a measured prior is: typed, as `results.json` and as tables on a terminal."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from codec.outputs import atomic_output
from eval.distribution.frechet import FrechetDistance
from eval.distribution.kernel_distance import KernelDistance
from eval.priors.classifier import ClassifierSettings
from eval.priors.drawing import DrawingSettings
from eval.priors.neighbours import Neighbour
from eval.results import RESULTS_FILE, figure

SAMPLES = "samples"
GAUSSIANS = ("Gaussian latents, by position and channel", "Gaussian latents, by channel")
MOST_DISTANCE = 0.5  # of the lower distance of Gaussian latents
LEAST_ACCURACY = 0.8  # of that on real validation images


@dataclass(frozen=True, slots=True)
class SetDistance:
    """How far one set of images is from a split.

    Attributes:
        images: what they are.
        reference: the split.
        kernel: unbiased kernel distance.
        frechet: Frechet distance of the same images.
    """

    images: str
    reference: str
    kernel: KernelDistance
    frechet: FrechetDistance


@dataclass(frozen=True, slots=True)
class ClassifierVerdict:
    """Shares of images whose class the classifier names.

    Attributes:
        settings: of the classifier.
        validation: accuracy on real validation images.
        test: on real test images.
        samples: on samples, with the class that was asked for; None for samples without classes.
        by_class: of the samples of each class.
    """

    settings: ClassifierSettings
    validation: float
    test: float
    samples: float | None
    by_class: Mapping[str, float]

    @property
    def ratio(self) -> float | None:
        """Accuracy on samples in parts of that on validation images."""
        return None if self.samples is None else self.samples / self.validation


@dataclass(frozen=True, slots=True)
class Likeness:
    """A sample, or another image, with the training images nearest to it."""

    name: str
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Copies:
    """Whether samples are copies of training images, in LPIPS(squeeze).

    Attributes:
        samples: with their nearest training images.
        validation: as many validation images with theirs, for comparison.
        reconstructions: LPIPS of as many training images to what the codec makes of them: what a
            copy would have.
    """

    samples: tuple[Likeness, ...]
    validation: tuple[Likeness, ...]
    reconstructions: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Return the median and least distances."""
        of_samples, of_validation = (
            [one.neighbours[0].lpips for one in part] for part in (self.samples, self.validation)
        )
        return {
            "samples_median": statistics.median(of_samples),
            "samples_least": min(of_samples),
            "validation_median": statistics.median(of_validation),
            "validation_least": min(of_validation),
            "copies_median": statistics.median(self.reconstructions),
            "copies_most": max(self.reconstructions),
        }


@dataclass(frozen=True, slots=True)
class PriorReport:
    """Everything that was measured.

    Attributes:
        samples: where they lie.
        drawing: how they were drawn; None for a folder of ready samples.
        codec: name of the codec that encodes, reconstructs and decodes Gaussian latents.
        num_samples: how many.
        size: side of the images in pixels.
        seed: of choices and draws.
        features: what distances are computed over.
        distances: of samples and what they are compared with.
        classifier: its verdict; None for splits without classes.
        copies: nearest training images.
        notes: what a reader of the figures should know.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    samples: str
    drawing: DrawingSettings | None
    codec: str
    num_samples: int
    size: int
    seed: int
    features: str
    distances: tuple[SetDistance, ...]
    classifier: ClassifierVerdict | None
    copies: Copies
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    command: str

    def distance_ratios(self) -> dict[str, float]:
        """Return the samples' kernel distance over the lower one of Gaussian latents, by split."""
        ratios = {}
        for split in dict.fromkeys(one.reference for one in self.distances):
            values = {
                one.images: one.kernel.value for one in self.distances if one.reference == split
            }
            ratios[split] = values[SAMPLES] / min(values[name] for name in GAUSSIANS)
        return ratios

    def verdicts(self) -> dict[str, bool]:
        """Return which of the project's marks are reached."""
        ratios = self.distance_ratios().items()
        found = {f"distance to {split}": ratio <= MOST_DISTANCE for split, ratio in ratios}
        if self.classifier is not None and self.classifier.ratio is not None:
            found["accuracy"] = self.classifier.ratio >= LEAST_ACCURACY
        return found

    def to_json(self) -> str:
        """Return the report with what follows from it as JSON, strictly."""
        content = asdict(self)
        content["distance_ratios"] = self.distance_ratios()
        content["copies"]["summary"] = self.copies.summary()
        if self.classifier is not None:
            content["classifier"]["ratio"] = self.classifier.ratio
        content["verdicts"] = self.verdicts()
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `results.json` into `folder`, whole or not at all, and return its path."""
        path = folder / RESULTS_FILE
        with atomic_output(path) as stream:
            stream.write(self.to_json().encode())
        return path


def distance_tables(report: PriorReport) -> list[Table]:
    """Lay the distances out for a terminal, a table a split."""
    tables = []
    for split in dict.fromkeys(one.reference for one in report.distances):
        table = Table(
            title=f"distance to {split} images, over {report.features}",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("images", overflow="fold")
        for title in ("kernel", "95 % interval", "Frechet", "of each"):
            table.add_column(title, justify="right", no_wrap=True)
        for one in report.distances:
            if one.reference == split:
                kernel = one.kernel
                table.add_row(
                    one.images,
                    figure(kernel.value, 1),
                    f"{kernel.low:.1f} to {kernel.high:.1f}",
                    figure(one.frechet.value, 0),
                    str(kernel.num_images),
                )
        tables.append(table)
    return tables


def remarks(report: PriorReport) -> list[str]:
    """Return the other figures in sentences."""
    lines = [
        f"samples lie at {ratio:.3f} of the lower distance of Gaussian latents to {split} "
        f"(wanted: at most {MOST_DISTANCE})"
        for split, ratio in report.distance_ratios().items()
    ]
    verdict = report.classifier
    if verdict is not None:
        lines.append(
            f"classifier: {verdict.validation:.1%} of validation, {verdict.test:.1%} of test images"
            + (
                ""
                if verdict.samples is None or verdict.ratio is None
                else f", {verdict.samples:.1%} of samples: {verdict.ratio:.3f} of validation "
                f"(wanted: at least {LEAST_ACCURACY})"
            )
        )
        if verdict.by_class:
            each = (f"{name} {share:.0%}" for name, share in verdict.by_class.items())
            lines.append(f"samples by class: {', '.join(each)}")
    found = report.copies.summary()
    lines.append(
        f"LPIPS(squeeze) to the nearest training image: samples {found['samples_median']:.3f} in "
        f"the median, {found['samples_least']:.3f} at least; validation images "
        f"{found['validation_median']:.3f} and {found['validation_least']:.3f}; a copy would have "
        f"{found['copies_median']:.3f}, {found['copies_most']:.3f} at most"
    )
    return lines
