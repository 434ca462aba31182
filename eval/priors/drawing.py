"""Draws samples of a prior into a folder, each once: a run that was stopped goes on.

Sample i shows class i modulo the number of classes, from seed i, and lies under its class and seed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codec import images
from codec.errors import LatentCodecError
from codec.outputs import atomic_output
from codec.prior.directory import PriorInfo
from eval.distribution.image_sets import ImageSet, open_images

SETTINGS_FILE = "settings.json"
_STORED = (".json", ".safetensors")  # what a prior's samples depend on
_BLOCK = 1 << 20


class DrawingError(LatentCodecError):
    """Samples that cannot be drawn or kept."""


@dataclass(frozen=True, slots=True)
class DrawingSettings:
    """What samples depend on beside class and seed.

    Attributes:
        prior: name of the prior.
        digest: hash over its files.
        guidance: 1 for none.
        steps: of the sampler; None for a prior of tokens.
        device: kind of device.
        dtype: what the codec computes in, and the prior as far as it is told.
    """

    prior: str
    digest: str
    guidance: float
    steps: int | None
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to draw: its class number, None for no class; its seed; its file."""

    label: int | None
    seed: int
    path: Path


def settings_of(prior: Any, guidance: float, steps: int | None) -> DrawingSettings:
    """Return what samples of an open prior depend on; see `codec.prior.open_prior`."""
    return DrawingSettings(
        prior=prior.info.name,
        digest=directory_digest(prior.info.directory),
        guidance=guidance,
        steps=steps,
        device=prior.codec.device.type,
        dtype=str(prior.codec.dtype).removeprefix("torch."),
    )


def directory_digest(directory: Path) -> str:
    """Return a hash over the weights and settings in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix in _STORED and path.is_file():
            digest.update(f"{path.relative_to(directory).as_posix()}\0".encode())
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def draw_samples(
    prior: Any,
    folder: Path,
    settings: DrawingSettings,
    *,
    number: int,
    first_seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> ImageSet:
    """Draw what is not there yet, and return all samples, in order of their names.

    Args:
        prior: what `codec.prior.open_prior` returned.
        folder: for PNG files in folders of their classes.
        settings: of `settings_of`.
        number: of samples.
        first_seed: of the first.
        batch_size: samples at once.
        force: draw all anew where the folder has samples of other settings.
        advance: is called after each sample, drawn or found.

    Raises:
        DrawingError: the folder has samples of other settings, or a class name is no folder's name.
    """
    draws = plan(prior.info, folder, number, first_seed)
    _claim(folder, settings, force=force)
    missing = [draw for draw in draws if not draw.path.is_file()]
    for _ in range(len(draws) - len(missing)):
        advance()
    for draw, pixels in zip(missing, _sampled(prior, missing, settings, batch_size), strict=True):
        images.save(pixels, draw.path)
        advance()
    wanted = {draw.path.resolve() for draw in draws}
    found = open_images(folder, prior.info.size[0])
    return found.pick(
        index
        for index, item in enumerate(found.items)
        if Path(item.locator["path"]).resolve() in wanted
    )


def plan(info: PriorInfo, folder: Path, number: int, first_seed: int) -> list[Draw]:
    """Return the samples to draw: classes take turns, seeds count on."""
    names = info.class_names
    for name in names:
        if Path(name).name != name or name.startswith("."):
            raise DrawingError(
                f"found class {name!r} of {info.name}, expected a name that a folder can have"
            )
    draws = []
    for index in range(number):
        label = index % len(names) if names else None
        place = folder if label is None else folder / names[label]
        seed = first_seed + index
        draws.append(Draw(label, seed, place / f"{seed:06d}.png"))
    return draws


def _sampled(
    prior: Any, draws: Sequence[Draw], settings: DrawingSettings, batch_size: int
) -> Iterator[images.Pixels]:
    if not draws:
        return iter(())
    steps = {} if settings.steps is None else {"steps": settings.steps}
    found: Iterator[images.Pixels] = prior.sample(
        [draw.label for draw in draws],
        [draw.seed for draw in draws],
        guidance=settings.guidance,
        batch_size=batch_size,
        **steps,
    )
    return found


def _claim(folder: Path, settings: DrawingSettings, *, force: bool) -> None:
    """Make sure that a folder holds samples of these settings alone."""
    path, wanted = folder / SETTINGS_FILE, asdict(settings)
    if folder.is_dir() and any(folder.iterdir()):
        kept = json.loads(path.read_text()) if path.is_file() else None
        if kept == wanted:
            return
        if kept is None:
            raise DrawingError(
                f"found files in {folder} that are no samples of a prior; give another -o"
            )
        if not force:
            other = ", ".join(
                f"{name} {kept.get(name)!r:.20}, now {value!r:.20}"
                for name, value in wanted.items()
                if kept.get(name) != value
            )
            raise DrawingError(
                f"found samples of other settings in {folder} ({other}): give another -o, or "
                "--force to draw them anew"
            )
        shutil.rmtree(folder)
    with atomic_output(path) as stream:
        stream.write((json.dumps(wanted, indent=2) + "\n").encode())
