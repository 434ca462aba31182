"""WebDataset tars: only headers are read to list them, and an image is then read by its offset.

A sample is a run of members that share a key: the path up to the first dot of the last part. What
follows that dot is the extension. The first member with an image's extension is the sample's image;
`.cls` is its class, `.txt` its caption, and `.json` may have both.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from codec.dataset.files import check_size, unreadable
from codec.dataset.handles import Handles
from codec.dataset.items import Item, UnreadableError
from codec.dataset.names import readable, relative_name
from codec.dataset.options import SourceOptions
from codec.dataset.sidecars import (
    Description,
    check_text_size,
    label_text,
    parse_caption,
    parse_json,
)
from codec.images import SUFFIXES
from codec.shards.records import ItemError

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_BLOCK = 512
_END_BYTES = 2**16  # that are looked at behind the last member


class TarError(UnreadableError):
    """A tar cannot be read, or not to its end."""


class Member(NamedTuple):
    """A file in a tar: its name in two parts, and where its bytes lie."""

    key: str
    extension: str
    offset: int
    size: int
    mtime: int
    is_sparse: bool


def iter_members(path: str) -> Iterator[Member]:
    """Yields the files of an uncompressed tar, reading headers alone and keeping none of them.

    Raises:
        TarError: It is compressed, no tar, or ends early; what was yielded before is good.
        OSError: It cannot be read.
    """
    name = os.path.basename(path)
    with open(path, "rb") as stream:
        if stream.read(6).startswith(_COMPRESSED):
            raise TarError(
                f"{name} is compressed: expected a plain tar, in which an image can be found "
                "without unpacking those before it, so unpack it once"
            )
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined] # else it keeps them all
                    member = _member(info)
                    if member is not None:
                        yield member
                end = archive.offset
        except tarfile.TarError as error:
            raise TarError(f"{name} is not a complete tar ({error}): copy it again") from error
        # tarfile takes a damaged header for the end, and needs no end mark.
        stream.seek(end)
        rest = stream.read(_END_BYTES)
        if len(rest) < _BLOCK:
            raise TarError(f"{name} ends without an end mark, so it may be cut off: copy it again")
        if any(rest):
            raise TarError(
                f"{name} has a damaged header at byte {end}, or goes on after its end mark: members"
                " behind it are not read, so write it again"
            )


def _member(info: tarfile.TarInfo) -> Member | None:
    folder, slash, base = info.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not info.isreg() or not stem or not dot:
        return None
    key, is_sparse = folder + slash + stem, info.sparse is not None
    return Member(key, extension.lower(), info.offset_data, info.size, int(info.mtime), is_sparse)


def _samples(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Yields neighbours with one key; also those before an error that ends the members."""
    sample: list[Member] = []
    try:
        for member in members:
            if sample and member.key != sample[0].key:
                yield sample
                sample = []
            sample.append(member)
    except (TarError, OSError):
        if sample:
            yield sample
        raise
    if sample:
        yield sample


class TarSource:
    """The samples of tars, in the order of the tars' names and in each tar's own.

    Args:
        root: What the tars' names are relative to.
        paths: The tars.
        options: Whether captions are read.
    """

    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(self, root: str, paths: list[str], options: SourceOptions) -> None:
        self._root = root
        self._paths = paths
        self._options = options
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says of the source."""
        name = readable(os.path.basename(self._root))
        return {"kind": "webdataset", "name": name, "tars": len(self._paths)} | (
            self._options.given()
        )

    def iter_items(self) -> Iterator[Item | ItemError]:
        """Yields the images in order; a tar that cannot be read is an error of its own."""
        self.ignored.clear()
        for path in self._paths:
            name = readable(relative_name(path, self._root))
            try:
                yield from self._tar(path, name)
            except TarError as error:
                yield ItemError(name, name, str(error))
            except OSError as error:
                yield ItemError(name, name, unreadable(name, error))

    def _tar(self, path: str, name: str) -> Iterator[Item | ItemError]:
        with open(path, "rb") as texts:
            status = os.fstat(texts.fileno())
            version = f"{status.st_size}-{status.st_mtime_ns}"
            for members in _samples(iter_members(path)):
                images = [one for one in members if f".{one.extension}" in SUFFIXES]
                if not images:
                    self.ignored.update(f".{readable(one.extension)}" for one in members)
                    continue
                source = f"{name}/{readable(members[0].key)}"
                image = images[0]
                try:
                    if image.is_sparse:
                        raise UnreadableError(f"{source} is stored with holes: write the tar again")
                    described = self._describe(texts.fileno(), members, source)
                except UnreadableError as error:
                    yield ItemError(source, source, str(error))
                    continue
                place = {"path": path, "offset": image.offset, "size": image.size}
                stamp = f"{image.size}-{image.mtime}-{version}"
                yield Item(
                    source,
                    source,
                    {"kind": "tar", **place},
                    described.label,
                    described.caption,
                    stamp,
                )

    def _describe(self, file: int, members: list[Member], source: str) -> Description:
        texts = {one.extension: one for one in members if one.extension in ("cls", "txt", "json")}

        def read(extension: str) -> bytes:
            member = texts[extension]
            check_text_size(member.size, f"{source}.{extension}")
            return os.pread(file, member.size, member.offset)

        found = Description()
        if "json" in texts:
            found = parse_json(read("json"), f"{source}.json")
        label, caption = found.label, found.caption
        if "cls" in texts:
            label = label_text(read("cls").decode("utf-8", "backslashreplace").strip())
        if "txt" in texts:
            caption = parse_caption(read("txt"), f"{source}.txt") or caption
        return Description(label, caption if self._options.captions else None)


class _Descriptor:
    """An open file without a position, so that nothing but its number is kept."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Closes it."""
        os.close(self.number)


_tars = Handles(_Descriptor)


def read_member(locator: Mapping[str, Any], source: str) -> bytes:
    """Returns the bytes of an image in a tar.

    Raises:
        UnreadableError: The tar is gone, or shorter than it was.
    """
    size, offset = locator["size"], locator["offset"]
    check_size(size, source)
    try:
        with _tars.use(locator["path"]) as tar:
            data = os.pread(tar.number, size, offset)
    except OSError as error:
        raise UnreadableError(unreadable(source, error)) from error
    if len(data) != size:
        raise UnreadableError(
            f"{source} is cut off with the tar that holds it: found {len(data)} of {size} bytes, "
            "so copy the tar again"
        )
    return data
