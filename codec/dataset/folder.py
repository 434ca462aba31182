"""A folder tree of images: class folders, and captions beside the images."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from codec.dataset.files import file_item
from codec.dataset.items import Item, SourceError, UnreadableError
from codec.dataset.names import readable
from codec.dataset.options import FolderLabels, SourceOptions
from codec.dataset.sidecars import Description, read_sidecars
from codec.dataset.sorting import sort_stream
from codec.images import SUFFIXES
from codec.shards.records import ItemError

SIDECARS = (".txt", ".json")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class _Entry(NamedTuple):
    """A name in a folder, ordered so that an image and the texts beside it are neighbours."""

    stem: str
    suffix: str
    is_folder: int

    @property
    def name(self) -> str:
        return self.stem + self.suffix


class FolderSource:
    """Images below a folder, sorted by name folder by folder; hidden names are left out.

    Links to folders are followed, but not into themselves. What is no image and no text beside one
    is counted in `ignored`.

    Args:
        root: The folder.
        options: Which folder names the class, and whether captions are read.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, root: str, options: SourceOptions) -> None:
        self._root = os.path.abspath(root)
        self._options = options
        self.ignored: Counter[str] = Counter()
        self.notes = tuple(
            f"{root} holds {name}, which is not read: give that file instead of the folder to use "
            "its labels and captions"
            for name in _METADATA
            if os.path.isfile(os.path.join(root, name))
        )

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        name = readable(os.path.basename(self._root))
        return {"kind": "folder", "name": name, **self._options.given()}

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the images in order.

        Raises:
            SourceError: The folder cannot be listed.
        """
        self.ignored.clear()
        yield from self._walk("", ())

    def _walk(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[Item | ItemError]:
        """Yields what lies below `folder`, a path relative to the root that ends in "/" or is "".

        `above` identifies the folders that it lies in.
        """
        path, name = os.path.join(self._root, folder), readable(folder)
        try:
            status = os.stat(path)
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            listing = os.scandir(path)
        except OSError as error:
            found = f"cannot be listed ({error.strerror}): check its permissions"
            if not folder:
                raise SourceError(f"{path} {found}") from error
            yield ItemError(name, name, f"the folder {name} {found}")
            return
        # Sorting stays outside, for a disk that it fills is no error of this folder.
        for _, group in groupby(sort_stream(_entries(listing)), key=lambda entry: entry[0]):
            members = [_Entry(*row) for row in group]  # type: ignore[arg-type]
            yield from self._images(folder, [entry for entry in members if not entry.is_folder])
            for entry in members:
                if entry.is_folder:
                    yield from self._walk(f"{folder}{entry.name}/", (*above, here))

    def _images(self, folder: str, files: Iterable[_Entry]) -> Iterator[Item | ItemError]:
        """Yields the images among files with one stem."""
        by_suffix = [(entry.suffix.lower(), entry.name) for entry in files]
        images = [name for suffix, name in by_suffix if suffix in SUFFIXES]
        texts = {
            suffix: os.path.join(self._root, folder, name)
            for suffix, name in by_suffix
            if suffix in SIDECARS
        }
        used = {*SUFFIXES, *SIDECARS} if images else SUFFIXES
        self.ignored.update(readable(suffix) for suffix, _ in by_suffix if suffix not in used)
        label = folder_label(folder, self._options.folder_labels)
        for name in images:
            path = os.path.join(self._root, folder, name)
            yield described_file(path, folder + name, texts, label, self._options.captions)


def described_file(
    path: str, source: str, texts: dict[str, str], label: str | None, captions: bool
) -> Item | ItemError:
    """Returns the item of an image with the texts beside it; see `read_sidecars`."""
    described = Description(label)
    if texts:
        try:
            described = read_sidecars(texts, readable(source), label, captions)
        except UnreadableError as error:
            return ItemError(readable(source), readable(source), str(error))
    return file_item(path, source, described)


def folder_label(folder: str, which: FolderLabels) -> str | None:
    """Returns the class that a path of folders names: its last part, its first, or none."""
    parts = [part for part in folder.split("/") if part not in ("", ".", "..")]
    if not parts or which == "none":
        return None
    return readable(parts[-1] if which == "parent" else parts[0])


def _entries(listing: "os._ScandirIterator[str]") -> Iterator[_Entry]:
    with listing:
        for entry in listing:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that leads in a circle: to be reported as a file
                is_folder = False
            stem, suffix = (entry.name, "") if is_folder else os.path.splitext(entry.name)
            yield _Entry(stem, suffix, int(is_folder))
