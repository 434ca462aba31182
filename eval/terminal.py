"""What the commands of `latent-codec-eval` share: options, tables and progress on a terminal.

Heavy imports wait inside the functions, so that help and wrong use are answered at once.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from eval.lpips import PerceptualDistance
    from eval.results import Failure

# What the `eval` extra installs, by the names that are imported.
EXTRA_MODULES = frozenset({"jinja2", "lpips", "skimage", "torchvision", "zstandard"})


class LpipsNet(StrEnum):
    """Backbones of LPIPS; values of different ones never belong into one table."""

    SQUEEZE = "squeeze"
    ALEX = "alex"
    VGG = "vgg"


Images = Annotated[str, typer.Argument(metavar="IMAGES", help="Folder, pattern or image.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many images.")]
LpipsBackbone = Annotated[
    Path | None,
    typer.Option("--lpips-backbone", metavar="FILE", help="ImageNet weights of LPIPS."),
]
LpipsNetwork = Annotated[LpipsNet, typer.Option("--lpips-net", help="Network of LPIPS.")]
NoLpips = Annotated[bool, typer.Option("--no-lpips", help="Leave LPIPS out.")]


def check_lpips_options(backbone: Path | None, left_out: bool) -> None:
    """Refuse options that contradict one another, before any work."""
    if left_out and backbone is not None:
        raise typer.BadParameter(
            "found --no-lpips too, expected one of them", param_hint="'--lpips-backbone'"
        )


def chosen_lpips(
    net: LpipsNet, backbone: Path | None, left_out: bool
) -> "tuple[PerceptualDistance | None, list[str]]":
    """Return LPIPS, or None and a note that says why it is missing or how to provide it."""
    if left_out:
        return None, ["no LPIPS: left out on request"]
    from eval.lpips import BackboneMissingError, load_lpips

    try:
        return load_lpips(net.value, backbone), []
    except BackboneMissingError as error:
        return None, [f"no LPIPS: {error}"]


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is going on, on a terminal only."""
    if is_quiet():
        yield lambda message: None
        return
    with terminal().status("starting") as shown:
        yield shown.update


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function that moves a progress bar by one, on a terminal only."""
    if is_quiet():
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=terminal(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def terminal() -> "Console":
    """Return stderr, where progress is shown."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def is_quiet() -> bool:
    """Whether nobody would see a progress bar."""
    return not sys.stderr.isatty()


def print_table(table: "Table") -> None:
    """Print a table to stdout."""
    from rich.console import Console

    # A file or a pipe has no width of its own; wide enough that names are not broken.
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, markup=False, width=width).print(table)


def print_problems(notes: Sequence[str], errors: "Sequence[Failure]") -> None:
    """Print notes and the images that failed to stderr."""
    for note in notes:
        console.print_warning(note)
    for failure in errors:
        name, sentence = failure.name, failure.error
        console.print_error(sentence if name in sentence else f"{name}: {sentence}")
