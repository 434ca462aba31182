"""What every command does the same way: exit codes, error lines, progress, output files.

Exit codes: 0 done, 1 the work failed (reported on stderr in a sentence), 2 wrong use, 130 Ctrl-C.
Commands import this first, so nothing here may import torch, numpy or PIL.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, NoReturn, TypeVar

import typer
import typer.main

from codec.errors import LatentCodecError
from codec.outputs import atomic_output, refuse_existing

__all__ = [
    "EXPECTED_ERRORS",
    "Debug",
    "Device",
    "Dtype",
    "DtypeName",
    "Force",
    "Json",
    "MissingExtraError",
    "Model",
    "atomic_output",
    "error_sentence",
    "leave_after",
    "needs_extra",
    "new_app",
    "print_error",
    "print_warning",
    "process_each",
    "refuse_existing",
    "run",
]

Item = TypeVar("Item")


class MissingExtraError(LatentCodecError):
    """A command needs packages that the base install leaves out."""


class DtypeName(StrEnum):
    """Names that `codec.device.choose_dtype` understands."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


# What a user can cause and mend. Anything else is our own mistake and keeps its traceback.
EXPECTED_ERRORS = (LatentCodecError, OSError, MemoryError)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing outputs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME|DIR", help="A name, a directory or a hub id."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, ...; the fastest there is.")
]
Dtype = Annotated[
    DtypeName | None,
    typer.Option("--dtype", help="Number format; the fastest safe one."),
]


def new_app(help_text: str) -> typer.Typer:
    """Returns an application whose help and usage errors are plain text on any terminal."""
    return typer.Typer(
        help=help_text, rich_markup_mode=None, no_args_is_help=True, add_completion=False
    )


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `app` and ends the process with the house's exit codes.

    Args:
        app: The application, as `new_app` makes it.
        arguments: The words after the program's name; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app).main(words)
    except EXPECTED_ERRORS as error:
        options = words[: words.index("--")] if "--" in words else words
        if "--debug" in options:
            raise
        print_error(error)
        sys.exit(1)
    sys.exit(0)


def leave_after(main: Callable[[], NoReturn]) -> NoReturn:
    """Runs a command and ends the process without the interpreter's clean-up.

    Tearing down torch and diffusers takes a second and touches 150 MB more than the work did. Only
    for commands that leave no thread, process or exit handler behind.
    """
    code: object = 0
    try:
        main()
    except SystemExit as exit_request:
        code = exit_request.code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = code or 1
    if "multiprocessing.forkserver" in sys.modules:  # there were worker processes, to tidy up after
        sys.exit(code)
    os._exit(code if isinstance(code, int) else int(code is not None))


@contextmanager
def needs_extra(extra: str, modules: Collection[str]) -> Iterator[None]:
    """Turns a missing package into a sentence that says what to install.

    Args:
        extra: The optional dependencies that the work inside needs, such as "train".
        modules: What they bring; another missing module is our own mistake and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in modules:
            raise
        raise MissingExtraError(
            f"found no package {missing!r}, which this command needs: "
            f"install it with pip install 'latent-codec[{extra}]'"
        ) from error


def error_sentence(error: BaseException) -> str:
    """Returns one line that says what went wrong, also for errors of the operating system."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__


def print_error(error: BaseException | str) -> None:
    """Writes `error: ...` to stderr."""
    sentence = error if isinstance(error, str) else error_sentence(error)
    print(f"error: {sentence}", file=sys.stderr)


def print_warning(message: str) -> None:
    """Writes `warning: ...` to stderr."""
    print(f"warning: {message}", file=sys.stderr)


def process_each(
    items: Sequence[Item],
    work: Callable[[Item], str | None],
    *,
    describe: Callable[[Item], str] = str,
    title: str = "",
    debug: bool = False,
) -> int:
    """Does `work` for each item; a failing item is reported and does not stop the others.

    A progress bar shows on stderr when that is a terminal and there is more than one item. The line
    that `work` returns goes to stdout.

    Args:
        items: What to work on, in order.
        work: Does one item and returns the line to print, or None for none.
        describe: Names an item in error lines.
        title: What stands before the progress bar.
        debug: Let the first error through, with its traceback.

    Returns:
        How many items failed.
    """
    failures = 0
    with _progress(len(items), title) as advance:
        for item in items:
            try:
                line = work(item)
            except EXPECTED_ERRORS as error:
                if debug:
                    raise
                failures += 1
                name, sentence = describe(item), error_sentence(error)
                print_error(sentence if name in sentence else f"{name}: {sentence}")
            else:
                if line is not None:
                    print(line, flush=True)
            advance()
    return failures


@contextmanager
def _progress(total: int, title: str) -> Iterator[Callable[[], None]]:
    """Yields a function that moves the progress bar by one."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn(title or "Working"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    # On a terminal both streams share the screen, so lines must move above the bar; a stdout that
    # goes elsewhere must not be drawn into it.
    with Progress(
        *columns,
        console=Console(stderr=True, highlight=False, markup=False),
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
