"""What `latent-codec sample` does: draws images, writes each as it is done, and a contact sheet.

Image i depends on its seed and its class alone, so a folder can be finished later, or get more
images, by the same command; the settings that it was made with lie beside, in samples.json.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codec import images
from codec.dataset.preprocess import center_square
from codec.images import Pixels
from codec.outputs import atomic_output
from codec.prior.directory import PriorError, PriorInfo
from codec.prior.opening import DiffusionPrior, open_prior
from codec.prior.sampling import Sampler, seeded_noise, slerp
from codec.prior.tokens import TokenPrior
from codec.shards.contact import SHEET_FILE, THUMBNAIL, contact_sheet

SETTINGS_FILE = "samples.json"
NO_CLASS = "none"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks for; see the command's help.

    Attributes:
        classes: Names, which take turns; empty for all of the prior's.
        count: How many images.
        seed: Of the first.
        steps: Of the sampler.
        guidance: 1 for none.
        sampler: See `codec.prior.sampling.make_sampler`.
        batch_size: Images at a time.
        image: To change instead of noise.
        strength: How much of it is made anew.
        mask: Where.
        between_seeds: The way from one to another.
        between_images: Likewise.
        temperature: Of token priors.
        top_k: Likewise.
        top_p: Likewise.
    """

    classes: tuple[str, ...] = ()
    count: int = 16
    seed: int = 0
    steps: int = 25
    guidance: float = 3.0
    sampler: str = "auto"
    batch_size: int = 8
    image: Path | None = None
    strength: float = 0.6
    mask: Path | None = None
    between_seeds: tuple[int, int] | None = None
    between_images: tuple[Path, Path] | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def starts_from_noise(self) -> bool:
        """Whether images are made from noise alone, each from its own seed."""
        return self.image is None and self.between_seeds is None and self.between_images is None

    @property
    def is_way(self) -> bool:
        """Whether the images are a way between two."""
        return self.between_seeds is not None or self.between_images is not None


@dataclass(frozen=True, slots=True)
class Frame:
    """One image to make.

    Attributes:
        number: Its place.
        label: Class number; None for no class.
        seed: Of its noise.
        path: Its file.
        title: Below it on the contact sheet.
    """

    number: int
    label: int | None
    seed: int
    path: Path
    title: str


def generate(
    prior_name: str | os.PathLike[str] | None,
    wish: Wish,
    output: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Makes the images that are not there yet, and a contact sheet of all; returns how many.

    Args:
        prior_name: See `open_prior`.
        wish: What is asked for.
        output: Folder.
        device: See `open_prior`.
        dtype: Likewise.
        force: Make all images anew, whatever the folder holds.

    Raises:
        LatentCodecError: The prior cannot do that, or the folder holds images of other settings.
    """
    prior = open_prior(prior_name, device=device, dtype=dtype)
    frames = list(_frames(prior.info, wish, output))
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, prior.info, wish, force=force)
    missing = [frame for frame in frames if force or not frame.path.is_file()]
    if missing:
        for frame, pixels in zip(missing, _images(prior, wish, missing), strict=True):
            images.save(pixels, frame.path)
    _write_sheet(frames, output / SHEET_FILE)
    return len(missing)


def _frames(info: PriorInfo, wish: Wish, output: Path) -> Iterator[Frame]:
    """Yields what is to be made: classes take turns, seeds count on."""
    labels: list[int | None] = [
        None if name == NO_CLASS else info.class_number(name) for name in wish.classes
    ] or list(range(len(info.class_names)))
    if wish.is_way:  # of one thing
        labels = labels[:1]
    for number in range(wish.count):
        label = labels[number % len(labels)] if labels else None
        seed = wish.seed if wish.is_way else wish.seed + number
        name = "" if label is None else f"-{_safe(info.class_names[label])}"
        which = "" if wish.is_way else f"-seed{seed}"
        shown = "" if label is None else info.class_names[label]
        title = f"{shown} {number if wish.is_way else seed}".strip()
        yield Frame(number, label, seed, output / f"{number:04d}{name}{which}.png", title)


def _images(
    prior: DiffusionPrior | TokenPrior, wish: Wish, frames: Sequence[Frame]
) -> Iterator[Pixels]:
    """Yields uint8 (H, W, 3) for each frame, with a progress bar on a terminal."""
    labels = [frame.label for frame in frames]
    seeds = [frame.seed for frame in frames]
    batches = -(-len(frames) // wish.batch_size)
    if isinstance(prior, TokenPrior):
        if not wish.starts_from_noise or wish.sampler != "auto":
            raise PriorError(
                f"found images, ways or a sampler for {prior.info.name}, expected none: it draws "
                "codes one after another, always from the first"
            )
        with _progress(batches * prior.layout.length) as advance:
            yield from prior.sample(
                labels,
                seeds,
                temperature=wish.temperature,
                top_k=wish.top_k,
                top_p=wish.top_p,
                guidance=wish.guidance,
                batch_size=wish.batch_size,
                advance=advance,
            )
        return
    if wish.temperature != 1.0 or wish.top_k is not None or wish.top_p is not None:
        raise PriorError(
            f"found a temperature, top-k or top-p for {prior.info.name}, expected none: it is a "
            "diffusion prior, which --steps, --guidance and --sampler are for"
        )
    settings = _settings(prior, wish, frames)
    total = batches * wish.steps
    with _progress(total) as advance:
        yield from prior.sample(
            labels,
            seeds,
            guidance=wish.guidance,
            steps=wish.steps,
            batch_size=wish.batch_size,
            sampler=cast(Sampler, wish.sampler),
            advance=advance,
            **settings,
        )


def _settings(prior: DiffusionPrior, wish: Wish, frames: Sequence[Frame]) -> dict[str, Any]:
    """Returns what an image, a mask or a way between two adds to the arguments."""
    count, size = len(frames), prior.info.size[0]
    if wish.between_seeds is not None:
        shape = prior.pipeline.latent_shape
        first, second = seeded_noise(wish.between_seeds, shape)
        return {"noise": slerp(first, second, _shares(wish, frames))}
    if wish.between_images is not None:
        first, second = (
            prior.pipeline.encode(_square(path, size))[0] for path in wish.between_images
        )
        shares = torch.tensor(_shares(wish, frames), device=first.device)[:, None, None, None]
        pixels = prior.pipeline.decode(torch.lerp(first[None], second[None], shares))
        return {"image": pixels, "strength": wish.strength}
    if wish.image is None:
        return {}
    found: dict[str, Any] = {
        "image": _square(wish.image, size).expand(count, -1, -1, -1),
        "strength": wish.strength,
    }
    if wish.mask is not None:
        mask = _square(wish.mask, size).mean(1, keepdim=True)
        found["mask_image"] = (mask > 0).float().expand(count, -1, -1, -1)
    return found


def _shares(wish: Wish, frames: Sequence[Frame]) -> list[float]:
    return [frame.number / (wish.count - 1) for frame in frames]


def _square(path: Path, size: int) -> Tensor:
    """Returns the middle of an image, float32 (1, 3, size, size) in [-1, 1]."""
    pixels = center_square(images.load(path).pixels, size)
    return torch.from_numpy(images.to_unit(np.ascontiguousarray(pixels)))[None]


def _claim(output: Path, info: PriorInfo, wish: Wish, *, force: bool) -> None:
    """Writes down the settings of a folder, or refuses to mix them with others."""
    settings = {name: _plain(value) for name, value in asdict(wish).items()}
    for free in ("batch_size",) if wish.is_way else ("batch_size", "count"):
        del settings[free]  # image i does not depend on it
    wanted = {"prior": info.name, "latent_id": info.latent_id, "summary": info.summary, **settings}
    path = output / SETTINGS_FILE
    has_images = any(output.glob("[0-9]*.png"))  # a wish that failed leaves none to mix with
    if path.is_file() and has_images and not force:
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in wanted.items() if found.get(name) != value]
        if other:
            raise PriorError(
                f"found images in {output} that were made with {other[0]} "
                f"{found.get(other[0])!r}, expected {wanted[other[0]]!r}; choose another folder, "
                "or give --force to overwrite them"
            )
        return
    with atomic_output(path) as stream:
        stream.write((json.dumps(wanted, indent=2) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _write_sheet(frames: Sequence[Frame], path: Path) -> None:
    thumbnails = []
    for frame in frames[:400]:
        small = PIL.Image.fromarray(images.load(frame.path).pixels)
        small.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
        thumbnails.append((frame.title, small))
    images.save(contact_sheet(thumbnails), path)


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)[:40]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Yields a function that moves a bar on a terminal's stderr by one."""
    console = Console(stderr=True)
    columns = (TextColumn("sampling"), BarColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
