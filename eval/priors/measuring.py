"""Measures a folder of samples against the splits that a prior was trained and held out on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from codec.errors import LatentCodecError
from codec.images import Pixels
from eval.distribution.features import FEATURES
from eval.distribution.image_sets import ImageSet, open_images
from eval.priors.classifier import (
    USUAL,
    ClassifierSettings,
    LatentClassifier,
    classify,
    train_classifier,
)
from eval.priors.copying import COMPARED, copies_sheet, measure_copies
from eval.priors.distances import measure_distances, num_decoded
from eval.priors.drawing import DrawingSettings
from eval.priors.encoded import EncodedSet, Instruments, encode_set, mirrored_latents
from eval.priors.kept import Tensors
from eval.priors.results import ClassifierVerdict, PriorReport
from eval.priors.sheets import class_sheet, save_webp
from eval.rate_distortion import command_line, package_versions

SHEET_FILE = "samples.webp"
COPIES_FILE = "nearest.webp"
_ACROSS = 8  # samples of a class on the sheet

# Opens a progress bar of a title and a number of steps.
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


class SplitsError(LatentCodecError):
    """Splits, or samples, whose classes do not go together."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Real images: what a prior was trained on, and what it never saw."""

    training: ImageSet
    validation: ImageSet
    test: ImageSet

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the training images by name; empty for images without."""
        return tuple(sorted({label for label in self.training.labels if label is not None}))


@contextmanager
def no_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


def open_splits(training: Path, validation: Path, test: Path, size: int) -> Splits:
    """List the images of three folders, as centre squares of a size.

    Raises:
        LatentCodecError: one is missing or empty, or has classes that the training images lack.
    """
    splits = Splits(*(open_images(folder, size) for folder in (training, validation, test)))
    for held_out in (splits.validation, splits.test):
        check_classes(held_out, splits.class_names)
    return splits


def check_classes(images: ImageSet, names: tuple[str, ...]) -> None:
    """Refuse images of classes that the training images do not have."""
    unknown = sorted({label for label in images.labels if label is not None} - set(names))
    if unknown:
        known = ", ".join(names) or "none"
        raise SplitsError(
            f"found class {unknown[0]!r} in {images.folder}, expected the folders of the training "
            f"images: {known}"
        )


def measure_prior(
    samples: ImageSet,
    splits: Splits,
    tools: Instruments,
    output: Path,
    *,
    drawing: DrawingSettings | None = None,
    classifier: ClassifierSettings | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> PriorReport:
    """Measure samples, and write results.json and two pictures.

    Args:
        samples: of the prior, in folders of their classes where they have one.
        splits: real images of the same size.
        tools: what to measure with.
        output: folder for what is written.
        drawing: how the samples were drawn.
        classifier: size and budget of the classifier; None for the usual ones.
        seed: of choices and draws.
        progress: opens progress bars.

    Raises:
        LatentCodecError: an image cannot be read, or the classes do not go together.
    """
    assert samples.size is not None
    check_classes(samples, splits.class_names)
    encoded = [
        _encoded(images, tools, progress, title)
        for title, images in (
            ("samples", samples),
            ("training images", splits.training),
            ("validation images", splits.validation),
            ("test images", splits.test),
        )
    ]
    drawn, training, validation, test = encoded
    references = {"validation": validation, "test": test}
    with progress("distances", num_decoded(drawn, references)) as advance:
        distances = measure_distances(
            drawn, training, references, tools, seed=seed, advance=advance
        )
    verdict, budget = None, classifier or USUAL
    if splits.class_names:
        model = _classifier(training, splits.class_names, budget, tools, progress)
        verdict = judge(model, splits.class_names, budget, drawn, validation, test)
    with progress("nearest images", 3 * COMPARED) as advance:
        copies = measure_copies(
            samples, training, splits.validation, tools, seed=seed, advance=advance
        )
    notes = [one.frechet.note for one in distances if one.frechet.note is not None]
    report = PriorReport(
        samples=str(samples.folder),
        drawing=drawing,
        codec=tools.codec.name,
        num_samples=len(samples),
        size=samples.size,
        seed=seed,
        features=FEATURES,
        distances=tuple(distances),
        classifier=verdict,
        copies=copies,
        notes=tuple(dict.fromkeys(notes)),
        versions=package_versions(),
        command=command_line(),
    )
    save_webp(samples_sheet(samples), output / SHEET_FILE)
    save_webp(copies_sheet(copies, samples, splits.training), output / COPIES_FILE)
    report.write(output)
    return report


def judge(
    model: LatentClassifier,
    names: tuple[str, ...],
    settings: ClassifierSettings,
    samples: EncodedSet,
    validation: EncodedSet,
    test: EncodedSet,
) -> ClassifierVerdict:
    """Ask the classifier for the classes of real images and of samples."""

    def hits(images: EncodedSet) -> torch.Tensor:
        return (classify(model, images.latents) == _numbers(images.images, names)).double()

    of_samples, labels = None, samples.images.labels
    if all(label is not None for label in labels):
        of_samples = hits(samples)
    by_class = {}
    for name in names if of_samples is not None else ():
        places = [index for index, label in enumerate(labels) if label == name]
        if places and of_samples is not None:
            by_class[name] = float(of_samples[places].mean())
    return ClassifierVerdict(
        settings=settings,
        validation=float(hits(validation).mean()),
        test=float(hits(test).mean()),
        samples=None if of_samples is None else float(of_samples.mean()),
        by_class=by_class,
    )


def samples_sheet(samples: ImageSet) -> Pixels:
    """Show the first samples of each class, a row a class: uint8 (H, W, 3)."""
    rows = []
    for name in sorted({label or "" for label in samples.labels}):
        of_class = [i for i, label in enumerate(samples.labels) if (label or "") == name]
        rows.append((name, [samples.load(i) for i in of_class[:_ACROSS]]))
    return class_sheet(rows)


def _encoded(images: ImageSet, tools: Instruments, progress: Progress, title: str) -> EncodedSet:
    with progress(title, len(images)) as advance:
        return encode_set(images, tools, advance)


def _classifier(
    training: EncodedSet,
    names: tuple[str, ...],
    settings: ClassifierSettings,
    tools: Instruments,
    progress: Progress,
) -> LatentClassifier:
    """Train the classifier, or find it kept."""

    def make() -> Tensors:
        with progress("mirrored images", len(training)) as advance:
            mirrored = mirrored_latents(training.images, tools, advance)
        with progress("classifier", settings.epochs) as advance:
            model = train_classifier(
                training.latents,
                mirrored,
                _numbers(training.images, names),
                len(names),
                settings,
                device=tools.codec.device,
                dtype=tools.codec.dtype,
                advance=advance,
            )
        return model.state_dict()

    key = (training.images.fingerprint, tools.codec_key, names, asdict(settings))
    weights = tools.keeper.get("classifier", *key, make=make)
    model = LatentClassifier(training.latents.shape[1], len(names), settings)
    model.load_state_dict(dict(weights))
    return model.to(tools.codec.device).eval()


def _numbers(images: ImageSet, names: tuple[str, ...]) -> torch.Tensor:
    """Return the class numbers of images, int64 (N,); -1 for none."""
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(label or "", -1) for label in images.labels])
