"""What can be wrong with one image: always an ItemError with a sentence, never an exception."""

import builtins
import os
import struct
import zlib
from pathlib import Path

import PIL.Image
import pytest
from pictures import encoded

from codec.dataset import sources
from codec.dataset.items import Item
from codec.dataset.preprocess import Preprocessing, load_item
from codec.dataset.sources import open_source
from codec.shards.records import ItemError
from tests.codec.dataset.image_sets import items, jpeg, png, write_files


def reason(item: Item, preprocessing: Preprocessing | None = None) -> str:
    found = load_item(item, preprocessing or Preprocessing(size=16))
    assert isinstance(found, ItemError)
    assert (found.key, found.source) == (item.key, item.source)
    assert "\n" not in found.reason
    return found.reason


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 3,600 million pixels."""
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IHDR" + header
    whole = png()
    return (
        whole[:8] + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data)) + whole[33:]
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cats/1.jpg is empty: expected an image file"),
        (jpeg()[:200], "cats/1.jpg is truncated or damaged"),
        (jpeg()[:-40], "cats/1.jpg is truncated or damaged"),
        (png()[:-40], "cats/1.jpg is truncated or damaged"),
        (b"<html>404</html>", "cats/1.jpg is not an image, or its header is damaged"),
        (b"%PDF-1.4", "cats/1.jpg is not an image"),
        (os.urandom(100), "cats/1.jpg is not an image"),
        (bomb(), "cats/1.jpg claims far more pixels"),
    ],
    ids=["empty", "header", "truncated-jpeg", "truncated-png", "html", "pdf", "random", "bomb"],
)
def test_broken_files(tmp_path: Path, content: bytes, said: str) -> None:
    write_files(tmp_path, {"cats/1.jpg": content, "cats/2.jpg": jpeg()})
    broken, good = items(open_source(tmp_path))
    assert said in reason(broken)
    assert isinstance(load_item(good, Preprocessing(size=16)), list)


def test_a_wrong_extension_of_an_image_does_not_matter(tmp_path: Path) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.jpg": png()})))
    assert isinstance(load_item(item, Preprocessing()), list)


def test_more_pixels_than_allowed(tmp_path: Path) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.png": png(height=30, width=40)})))
    assert isinstance(load_item(item, Preprocessing(max_pixels=1200)), list)
    assert "1.png claims 40 x 30 pixels: expected 1 to 1,199" in reason(
        item, Preprocessing(max_pixels=1199)
    )


def test_files_that_are_gone_or_replaced_by_a_folder(tmp_path: Path) -> None:
    first, second = items(open_source(write_files(tmp_path, {"1.png": png(), "2.png": png()})))
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").mkdir()
    assert reason(first) == "1.png does not exist: expected an image file there"
    assert reason(second) == "2.png is a folder: expected an image file"


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.png": png()})))

    def refuse(path: str, *_: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(builtins, "open", refuse)
    assert reason(item) == (
        "1.png cannot be read (Permission denied): check its permissions and the disk"
    )


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.png": png()})))
    monkeypatch.setattr("codec.dataset.files.MAX_FILE_BYTES", 100)
    assert "bytes: expected an image of at most 100" in reason(item)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "1.png needs more memory than there is"),
        (ZeroDivisionError("by\nzero"), "1.png makes its reader fail (ZeroDivisionError: by zero)"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_whatever_a_library_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.png": png()})))

    def fail(item: Item) -> bytes:
        raise error

    monkeypatch.setattr(sources, "read_item", fail)
    assert said in reason(item)


def test_ctrl_c_is_no_error_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = items(open_source(write_files(tmp_path, {"1.png": png()})))

    def interrupt(item: Item) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "read_item", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_item(item, Preprocessing())


def test_transparent_and_animated_images_lose_that_without_an_error(tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGBA", (8, 8), (10 * n, 0, 0, 128)) for n in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    (item,) = items(open_source(write_files(tmp_path, {"1.webp": data})))
    assert isinstance(load_item(item, Preprocessing()), list)
    assert "several frames" in reason(item, Preprocessing(strict=True))
