"""Small sets of images on disk that the tests of sources list and read."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image
from pictures import encoded, noise

from codec.dataset.items import Item, Source
from codec.shards.records import ItemError


def jpeg(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
    """A small JPEG."""
    return encoded(PIL.Image.fromarray(noise(height, width, seed=seed)), "JPEG")


def png(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
    """A small PNG."""
    return encoded(PIL.Image.fromarray(noise(height, width, seed=seed)))


def write_files(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Writes files below a folder, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes | str]]) -> Path:
    """Writes a tar with members in this order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1000
            archive.addfile(info, io.BytesIO(data))
    return path


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """Writes a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(source: Source) -> list[Item]:
    """All entries of a source, none of which may be an error."""
    entries = list(source.iter_items())
    assert [entry for entry in entries if isinstance(entry, ItemError)] == []
    return [entry for entry in entries if isinstance(entry, Item)]


def keys(source: Source) -> list[str]:
    """The keys of a source without errors, in order."""
    return [item.key for item in items(source)]


def errors(source: Source) -> list[ItemError]:
    """What is wrong in a source."""
    return [entry for entry in source.iter_items() if isinstance(entry, ItemError)]
