"""A list of image files: a text file with one path a line."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from codec.dataset.files import is_remote, remote_error
from codec.dataset.folder import SIDECARS, described_file, folder_label
from codec.dataset.items import Item, SourceError
from codec.dataset.names import readable, relative_name
from codec.dataset.options import SourceOptions
from codec.shards.records import ItemError


class ListSource:
    """The images of a text file, one path a line, relative to the file, in its order.

    Labels and captions are found as in a folder tree: from the folder in the path, and from texts
    beside the image.
    """

    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(self, path: str, options: SourceOptions) -> None:
        self._path = os.path.abspath(path)
        self._options = options
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        name = readable(os.path.basename(self._path))
        return {"kind": "list", "name": name, **self._options.given()}

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the images in order.

        Raises:
            SourceError: The list cannot be read.
        """
        try:
            with open(self._path, "rb") as stream:
                for line in stream:
                    # Not decoded as UTF-8: a file's name is bytes.
                    name = os.fsdecode(line.strip().removeprefix(b"\xef\xbb\xbf"))
                    if name:
                        yield self._item(name)
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read ({error.strerror})") from error

    def _item(self, name: str) -> Item | ItemError:
        root = os.path.dirname(self._path)
        if is_remote(name):
            return remote_error(name)
        path, source = os.path.join(root, name), relative_name(name, root)
        stem, folder = os.path.splitext(path)[0], source.rpartition("/")[0]
        texts = {end: stem + end for end in SIDECARS if os.path.isfile(stem + end)}
        label = folder_label(folder, self._options.folder_labels)
        return described_file(path, source, texts, label, self._options.captions)
