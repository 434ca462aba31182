"""What may become of the folder that an export writes."""

from pathlib import Path

from codec.errors import LatentCodecError


class ExportError(LatentCodecError):
    """A run or model cannot be exported."""


def refuse_folder(output: Path, *, force: bool) -> None:
    """Raises ExportError when `output` is there already and `force` is not given."""
    if output.exists() and not force:
        raise ExportError(f"{output} already exists: choose another folder or add --force")
