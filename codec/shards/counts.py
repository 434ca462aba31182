"""What headers and manifests have in common: their version, and counts of grids and labels."""

from collections.abc import Mapping
from typing import Any

from codec.shards.errors import ShardError
from codec.shards.fields import VERSION, integer


def check_version(content: Mapping[str, Any], expected: str) -> None:
    """Refuses JSON that is of another format, or of a newer version of it.

    Raises:
        ShardError: It is.
    """
    if content.get("format") != expected:
        raise ShardError(f"found the format {content.get('format')!r}, expected {expected!r}")
    if content.get("version") != VERSION:
        raise ShardError(
            f"found version {content.get('version')!r} of the format, expected {VERSION}; "
            "update latent-codec"
        )


def grids_to_json(grids: Mapping[tuple[int, int], int]) -> dict[str, int]:
    """Returns how many records there are of each grid, "hxw", in order."""
    return {f"{rows}x{columns}": count for (rows, columns), count in sorted(grids.items())}


def grids_from_json(content: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    """Returns what `grids_to_json` gave.

    Raises:
        ShardError: It is something else.
    """
    grids = {}
    for name, count in counts_from_json(content).items():
        rows, _, columns = name.partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and len(name) <= 20):
            raise ShardError(f"found the grid {name[:40]!r}, expected rows and columns like 64x64")
        grids[int(rows), int(columns)] = count
    return grids


def counts_from_json(content: Mapping[str, Any]) -> dict[str, int]:
    """Returns an object of whole numbers.

    Raises:
        ShardError: It is something else.
    """
    return {name: integer(content, name, 0) for name in content}
