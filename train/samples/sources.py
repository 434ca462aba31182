"""Where training images come from, behind one small interface with random access.

Every picture is decoded by `codec.images`, so that orientation, colour modes and damage are treated
alike whatever holds it. A source keeps names, places and sizes, never an open file: it can be
pickled for loader processes, and image i depends on nothing that was read before it.
`train.samples.pool` joins the sources of a configuration.
"""

import itertools
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from codec import images
from codec.errors import LatentCodecError
from codec.images import Pixels

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_MOST_NUMBERED_CLASSES = 100_000


class DataError(LatentCodecError):
    """The training data cannot be used."""


class ImageSource(Protocol):
    """Images by number.

    Attributes:
        name: what it is, for messages.
        classes: names of the class labels; empty where there are none.
    """

    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """A readable name of image i; what follows its last slash is what exclusion goes by."""

    def size_bytes(self, i: int) -> int:
        """Size of the encoded image, without reading it; -1 where it is missing."""

    def label(self, i: int) -> int:
        """The image's place in `classes`, or -1."""

    def load(self, i: int) -> Pixels:
        """Decode to uint8 (H, W, 3).

        Raises:
            codec.images.ImageError: the image is missing, broken or of an unknown format.
        """


class FileSource:
    """Image files; the class of an image is the name of the folder that it lies in.

    Args:
        name: what it is, for messages.
        files: the images; one that is missing counts as unreadable.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name = name
        self.files = list(files)
        self.classes = tuple(sorted({path.parent.name for path in self.files}))
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, i: int) -> str:
        return self.files[i].as_posix()

    def size_bytes(self, i: int) -> int:
        try:
            return self.files[i].stat().st_size
        except OSError:
            return -1

    def label(self, i: int) -> int:
        return self._numbers[self.files[i].parent.name]

    def load(self, i: int) -> Pixels:
        return images.load(self.files[i]).pixels


def folder_source(folders: Sequence[str]) -> FileSource:
    """Every image below the folders, sorted by path, each once."""
    files = sorted({path for folder in folders for path in images.find([folder])})
    return FileSource(f"folders {', '.join(folders)}", files)


def list_source(listing: str) -> FileSource:
    """The images of a text file, one path a line, relative to the file, in its order.

    Raises:
        DataError: the list is missing, not text, or empty.
    """
    files = [Path(listing).parent / line for line in read_lines(listing)]
    if not files:
        raise DataError(f"the list {listing} is empty: expected one image path a line")
    return FileSource(f"list {listing}", files)


class TarSource:
    """The pictures of a WebDataset tar, by WebDataset's rules for names.

    A sample is a run of members that share a key: the path up to the first dot of the last part.
    What follows that dot is the extension; the first member with the extension of a picture is
    the sample's image, and `.cls` its class, a number or a name.

    Args:
        path: an uncompressed tar file; only its headers are read here.
        labels: read the `.cls` members.

    Raises:
        DataError: missing, compressed, damaged, or without a picture.
    """

    def __init__(self, path: str | Path, *, labels: bool = False) -> None:
        self.path = Path(path)
        self.name = f"tar {path}"
        texts: list[str | None] = []
        self._members: list[tuple[str, int, int]] = []  # name, offset, size in bytes
        for members in _samples(_regular_members(self.path)):
            pictures = [m for ending, m in members if f".{ending}" in images.SUFFIXES]
            if not pictures:
                continue
            picture = pictures[0]
            self._members.append((picture.name, picture.offset_data, picture.size))
            classes = [m for ending, m in members if ending == "cls"] if labels else []
            texts.append(self._read(classes[0].offset_data, classes[0].size) if classes else None)
        if not self._members:
            raise DataError(
                f"found no picture in {path}: expected members such as 0001.jpg, ending in "
                f"{', '.join(sorted(images.SUFFIXES))}"
            )
        self.classes, self._labels = number_classes(texts)

    def __len__(self) -> int:
        return len(self._members)

    def key(self, i: int) -> str:
        return f"{self.path.as_posix()}/{self._members[i][0]}"

    def size_bytes(self, i: int) -> int:
        return self._members[i][2]

    def label(self, i: int) -> int:
        return self._labels[i]

    def load(self, i: int) -> Pixels:
        _, offset, size = self._members[i]
        try:
            with self.path.open("rb") as stream:  # anew each time: processes share no position
                stream.seek(offset)
                data = stream.read(size)
        except OSError as error:
            raise images.ImageError(
                f"{self.path} cannot be read any more ({error.strerror}): leave the file in place "
                "while training"
            ) from error
        return images.load(data).pixels

    def _read(self, offset: int, size: int) -> str:
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size).decode("utf-8", "replace").strip()


def _regular_members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as archive:
            return [member for member in archive if member.isfile()]
    except tarfile.TarError as error:
        with path.open("rb") as stream:
            is_compressed = stream.read(6).startswith(_COMPRESSED)
        if is_compressed:
            raise DataError(
                f"{path} is compressed: expected a plain tar, in which an image can be found "
                "without unpacking those before it, so unpack it once"
            ) from error
        raise DataError(
            f"{path} is not a complete tar file ({error}): copy it again, or correct "
            "data.webdataset"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): check data.webdataset"
        ) from error


def _samples(
    members: Iterable[tarfile.TarInfo],
) -> Iterable[list[tuple[str, tarfile.TarInfo]]]:
    """Neighbouring members with one key, each with its extension in lower case."""
    named = []
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if stem and dot:
            named.append((folder + slash + stem, ending.lower(), member))
    for _, group in itertools.groupby(named, key=lambda entry: entry[0]):
        yield [(ending, member) for _, ending, member in group]


def number_classes(names: Sequence[str | None]) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the place of each given name among them (-1 for None).

    The classes are the sorted names, or "0", "1" and so on where all names are numbers: a number is
    then its own place, although some of the classes may not occur.
    """
    found = {name for name in names if name is not None}
    numbers = [int(name) for name in found if name.isascii() and name.isdigit()]
    if found == {str(number) for number in numbers if number < _MOST_NUMBERED_CLASSES}:
        classes = tuple(str(number) for number in range(max(numbers, default=-1) + 1))
    else:
        classes = tuple(sorted(found))
    places = {name: place for place, name in enumerate(classes)}
    return classes, [-1 if name is None else places[name] for name in names]


def read_names(listing: str | Path) -> set[str]:
    """The image names in a text file, one a line.

    Raises:
        DataError: the file is missing or not text.
    """
    return set(read_lines(listing))


def read_lines(listing: str | Path) -> list[str]:
    """The lines of a text file that are not blank, without the blanks around them."""
    try:
        lines = Path(listing).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"found no list of names {listing}, expected a text file in UTF-8"
        ) from error
    return [line.strip() for line in lines if line.strip()]
