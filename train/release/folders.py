"""Model directories that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codec.errors import LatentCodecError


class ExportError(LatentCodecError):
    """A run or model cannot be exported."""


def refuse_folder(output: Path, *, force: bool) -> None:
    """Raises ExportError when `output` is there already and `force` is not given."""
    if output.exists() and not force:
        raise ExportError(f"{output} already exists: choose another folder or add --force")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a place for a folder, not there yet, which becomes `output` when the work is done.

    An error removes what was written and leaves an `output` that exists as it is.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as temporary:
        partial = Path(temporary) / output.name
        yield partial
        for path in partial.iterdir():
            path.chmod(0o644)  # the weights' file is private as diffusers writes it
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
