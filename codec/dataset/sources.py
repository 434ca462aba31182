"""Sources of any kind behind two functions: `open_source` lists images, `read_item` reads one."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from codec.dataset.files import is_remote, read_file
from codec.dataset.folder import FolderSource
from codec.dataset.items import Item, Source, SourceError
from codec.dataset.lists import ListSource
from codec.dataset.manifest import CSV_SUFFIXES, JSON_SUFFIXES, ManifestSource
from codec.dataset.options import Kind, SourceOptions
from codec.dataset.parquet import ParquetSource, read_parquet
from codec.dataset.patterns import expand
from codec.dataset.saved import DICT_FILE, STATE_FILE, SavedSource, read_saved
from codec.dataset.tars import TarSource, read_member
from codec.images import SUFFIXES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PARQUET_SUFFIXES = (".parquet",)

_KIND_OF_SUFFIX: dict[str, Kind] = {
    ".txt": "list",
    **dict.fromkeys(CSV_SUFFIXES + JSON_SUFFIXES, "manifest"),
    **dict.fromkeys(TAR_SUFFIXES, "webdataset"),
    **dict.fromkeys(PARQUET_SUFFIXES, "parquet"),
    **dict.fromkeys(SUFFIXES, "folder"),
}
_LOOKED_AT = 10_000  # names in a folder that say what it holds

_READERS: dict[str, Callable[[Mapping[str, Any], str], bytes]] = {
    "file": read_file,
    "tar": read_member,
    "parquet": read_parquet,
    "arrow": read_saved,
}


def open_source(place: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """Opens a source of images; no image is read, and nothing is downloaded.

    Args:
        place: A folder of images, of WebDataset tars or of Parquet files; the folder of a saved
            Hugging Face dataset; a list (.txt) or manifest (.csv, .tsv, .jsonl); or a pattern that
            leads to tars or Parquet files.
        options: How to read it; None looks.

    Raises:
        SourceError: It does not exist, or is none of these.
        MissingExtraError: It needs a package that is not installed.
    """
    place, options = os.fspath(place), options or SourceOptions()
    if is_remote(place):
        raise SourceError(
            f"{place} is an address: expected a file or folder, because nothing is downloaded"
        )
    kind = _look(place) if options.kind == "auto" else options.kind
    if kind == "huggingface" and not _is_saved(place):
        kind = "parquet"  # as the hub has it
    match kind:
        case "webdataset" | "parquet":
            return _open_files(place, kind, options)
        case "list":
            return ListSource(_existing(place, is_folder=False), options)
        case "manifest":
            return ManifestSource(_existing(place, is_folder=False), options)
        case "huggingface":
            return SavedSource(place, options)
        case _:
            return FolderSource(_existing(place, is_folder=True), options)


def read_item(item: Item) -> bytes:
    """Returns the bytes of an item's image file.

    Files that hold many images stay open between calls, a few in each process. Of Parquet files,
    items are read quickest in their order.

    Raises:
        UnreadableError: It is gone, cut off, or may not be read.
    """
    return _READERS[item.locator["kind"]](item.locator, item.source)


def _open_files(place: str, kind: Kind, options: SourceOptions) -> Source:
    suffixes = TAR_SUFFIXES if kind == "webdataset" else PARQUET_SUFFIXES
    root, paths = expand(place, suffixes)
    if not paths:
        raise SourceError(f"found no file ending in {suffixes[0]} for {place}: check the path")
    source: Callable[[str, list[str], SourceOptions], Source] = (
        TarSource if kind == "webdataset" else ParquetSource
    )
    return source(root, paths, options)


def _existing(place: str, *, is_folder: bool) -> str:
    if not os.path.lexists(place):
        raise SourceError(f"{place} does not exist: check the path")
    if os.path.isdir(place) != is_folder:
        expected = "a folder" if is_folder else "a file"
        raise SourceError(
            f"{place} is {'a file' if is_folder else 'a folder'}, expected {expected}"
        )
    return place


def _is_saved(place: str) -> bool:
    return any(os.path.isfile(os.path.join(place, name)) for name in (STATE_FILE, DICT_FILE))


def _look(place: str) -> Kind:
    """What a path leads to."""
    if os.path.isdir(place):
        return "huggingface" if _is_saved(place) else _look_into(place)
    if not os.path.lexists(place) and not set("*?[{") & set(place):
        raise SourceError(f"{place} does not exist: check the path")
    kind = _kind_of_name(place)
    if kind is None or kind == "folder":
        raise SourceError(
            f"{place} is no source of images: expected a folder, a saved dataset, or files ending "
            f"in {', '.join((*CSV_SUFFIXES, *JSON_SUFFIXES))}, .txt, .tar or .parquet"
        )
    return kind


def _look_into(folder: str) -> Kind:
    """What the first names in a folder, and in those in it, say of it."""
    names = (name for _, _, files in os.walk(folder) for name in files if name[0] != ".")
    kinds = Counter(_kind_of_name(name) for name in islice(names, _LOOKED_AT))
    found: list[Kind] = [one for one in ("folder", "webdataset", "parquet") if kinds[one]]
    if len(found) > 1:
        what = {"folder": "images", "webdataset": "tars", "parquet": "Parquet files"}
        raise SourceError(
            f"{folder} holds {' and '.join(what[one] for one in found)}: say which to read with "
            f"--kind {' or --kind '.join(found)}"
        )
    return found[0] if found else "folder"


def _kind_of_name(name: str) -> Kind | None:
    name = name.lower()
    return next((kind for end, kind in _KIND_OF_SUFFIX.items() if name.endswith(end)), None)
