"""Samples and validation images beside the training images nearest to them, as figures and picture.

Legend: H W pixels.
"""

from collections.abc import Callable, Sequence

from codec.images import Pixels
from eval.distribution.image_sets import ImageSet
from eval.priors.baselines import take_turns
from eval.priors.encoded import EncodedSet, Instruments, decoded
from eval.priors.neighbours import lpips_to, nearest
from eval.priors.results import Copies, Likeness
from eval.priors.sheets import comparison_sheet

COMPARED = 16  # samples, and as many validation and training images


def measure_copies(
    samples: ImageSet,
    training: EncodedSet,
    validation: ImageSet,
    tools: Instruments,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Copies:
    """Find the training images nearest to samples and, for comparison, to validation images.

    Args:
        samples: of the prior; the first ones of each class in turn are taken.
        training: the training split.
        validation: real images that are not in it.
        tools: what to measure with.
        seed: which validation and training images are taken.
        advance: is called after each image, `COMPARED` times three at most.
    """
    shown = samples.pick(take_turns(samples.labels, COMPARED))
    real = validation.pick(take_turns(validation.labels, COMPARED, seed=seed))
    copied = take_turns(training.images.labels, COMPARED, seed=seed)
    distances = []
    for index, image in zip(copied, decoded(tools.codec, training.latents[copied]), strict=True):
        distances += lpips_to(training.images.load(index), [image], tools.network)
        advance()
    return Copies(
        _likenesses(shown, training, tools, advance),
        _likenesses(real, training, tools, advance),
        tuple(distances),
    )


def copies_sheet(copies: Copies, samples: ImageSet, training: ImageSet) -> Pixels:
    """Show samples with their nearest training images and distances: uint8 (H', W', 3)."""
    places = {item.source: index for index, item in enumerate(samples.items)}
    groups: list[Sequence[tuple[Pixels, str]]] = []
    for one in copies.samples:
        index = places[one.name]
        group = [(samples.load(index), samples.labels[index] or "sample")]
        for neighbour in one.neighbours:
            pixels = training.load(neighbour.index)
            if neighbour.is_mirrored:
                pixels = pixels[:, ::-1].copy()
            group.append((pixels, f"{neighbour.lpips:.3f}"))
        groups.append(group)
    return comparison_sheet(groups)


def _likenesses(
    images: ImageSet, training: EncodedSet, tools: Instruments, advance: Callable[[], None]
) -> tuple[Likeness, ...]:
    found = nearest(images, training.images, training.features, tools.network, advance)
    return tuple(
        Likeness(item.source, neighbours)
        for item, neighbours in zip(images.items, found, strict=True)
    )
