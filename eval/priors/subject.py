"""What is to be measured: a prior, whose samples are drawn, or a folder of samples at hand."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.pipeline import Codec
from codec.prior.directory import PRIOR_FILE
from eval.distribution.image_sets import ImageSet, common_size, open_images
from eval.priors.baselines import take_turns
from eval.priors.drawing import DrawingError, DrawingSettings, draw_samples, settings_of


@dataclass(frozen=True, slots=True)
class Wish:
    """How a user wants samples to be drawn; see the command's help.

    Attributes:
        number: of samples; None for the usual number.
        guidance: None for the prior's own.
        steps: likewise.
        first_seed: of the first sample.
        batch_size: samples at once.
        force: draw anew where samples of other settings lie.
    """

    number: int | None = None
    guidance: float | None = None
    steps: int | None = None
    first_seed: int = 0
    batch_size: int = 16
    force: bool = False


class ReadySamples:
    """A folder of samples."""

    def __init__(self, images: ImageSet, codec: Codec) -> None:
        self.codec = codec
        width, height = common_size(images)
        if width != height:
            raise DrawingError(
                f"found samples of {width}x{height} pixels in {images.folder}, expected squares"
            )
        self.size = width
        self._images = images

    def samples(
        self, wish: Wish, folder: Path, usual: int, advance: Callable[[], None]
    ) -> tuple[ImageSet, DrawingSettings | None]:
        """Return the samples, or the first of them if fewer are wanted.

        Raises:
            DrawingError: how to draw was said, or there are fewer than wanted.
        """
        if wish.guidance is not None or wish.steps is not None:
            raise DrawingError(
                f"found a guidance or steps for {self._images.folder}, whose samples are there "
                "already; expected a prior with them"
            )
        if wish.number is not None and wish.number > len(self._images):
            raise DrawingError(
                f"found {len(self._images)} samples in {self._images.folder}, expected at least "
                f"{wish.number}"
            )
        chosen = self._images
        if wish.number is not None:
            chosen = chosen.pick(sorted(take_turns(chosen.labels, wish.number)))
        return ImageSet(chosen.folder, chosen.items, self.size), None


class DrawnSamples:
    """A prior, by `codec.prior.open_prior`."""

    def __init__(self, prior: Any) -> None:
        self.codec: Codec = prior.codec
        width, height = prior.info.size
        if width != height:
            raise DrawingError(
                f"found {prior.info.name}, whose images have {width}x{height} pixels, expected a "
                "prior over squares"
            )
        self.size: int = width
        self._prior = prior

    def samples(
        self, wish: Wish, folder: Path, usual: int, advance: Callable[[], None]
    ) -> tuple[ImageSet, DrawingSettings]:
        """Draw the samples that are not in the folder yet.

        Args:
            wish: what the user says.
            folder: for the samples.
            usual: how many where the user does not say.
            advance: is called after each sample.

        Raises:
            LatentCodecError: see `draw_samples`.
        """
        from codec.prior.opening import GUIDANCE, STEPS

        is_diffusion = self._prior.info.kind == "diffusion"
        if not is_diffusion and wish.steps is not None:
            raise DrawingError(f"found steps for {self._prior.info.name}, a prior of tokens")
        guidance = wish.guidance
        if guidance is None:
            guidance = GUIDANCE if is_diffusion else 1.0
        steps = (wish.steps or STEPS) if is_diffusion else None
        settings = settings_of(self._prior, guidance, steps)
        drawn = draw_samples(
            self._prior,
            folder,
            settings,
            number=wish.number or usual,
            first_seed=wish.first_seed,
            batch_size=wish.batch_size,
            force=wish.force,
            advance=advance,
        )
        return drawn, settings


def open_subject(
    name: str,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> ReadySamples | DrawnSamples:
    """Open what a user names.

    Args:
        name: a folder without prior.json is one of samples; all else a prior.
        model: codec to measure a folder of samples with.
        device: where to run; see `codec.device`.
        dtype: likewise.

    Raises:
        LatentCodecError: it is neither, or damaged; or a codec is named beside a prior's own.
    """
    if os.path.isdir(name) and not (Path(name) / PRIOR_FILE).is_file():
        images = open_images(Path(name))
        return ReadySamples(images, Codec.from_pretrained(model, device=device, dtype=dtype))
    if model is not None:
        raise DrawingError(
            f"found --model {model} for the prior {name}, which names its own codec; leave it out"
        )
    from codec.prior import open_prior

    return DrawnSamples(open_prior(name, device=device, dtype=dtype))
