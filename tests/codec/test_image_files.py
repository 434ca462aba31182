"""Animations, damaged, foreign and oversized files, and threads."""

import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pictures import encoded, noise

from codec import images
from codec.images import ImageError

Pixels = images.Pixels


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_taken(format_name: str) -> None:
    frames = [PIL.Image.new("RGB", (4, 4), (level, level, 0)) for level in (255, 0)]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    image = images.load(data)
    np.testing.assert_array_equal(image.pixels, np.asarray(frames[0]))
    assert len(image.warnings) == 1
    assert "only frame 1 is used" in image.warnings[0]
    with pytest.raises(ImageError, match="several frames"):
        images.load(data, strict=True)


def test_auxiliary_views_of_a_photograph_are_no_animation() -> None:
    picture = PIL.Image.fromarray(noise(8, 8))
    data = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert images.load(data, strict=True).warnings == ()


@pytest.mark.parametrize(
    "format_name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM"]
)
def test_truncated_file_is_one_clear_error(tmp_path: Path, format_name: str) -> None:
    data = encoded(PIL.Image.fromarray(noise(48, 64)), format_name)
    path = tmp_path / "cut.bin"
    for size in (3, 11, 40, len(data) // 2, len(data) - 64):
        path.write_bytes(data[:size])
        with pytest.raises(ImageError, match=r"cut\.bin is (truncated|not an image)"):
            images.load(path)


def test_flipped_bytes_give_an_image_or_an_image_error() -> None:
    random = np.random.default_rng(1)
    picture = PIL.Image.fromarray(noise(12, 12))
    for format_name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"):
        data = encoded(picture, format_name)
        for _ in range(60):
            damaged = bytearray(data)
            for position in random.integers(0, min(len(data), 200), 2):
                damaged[position] ^= int(random.integers(1, 256))
            try:
                image = images.load(bytes(damaged), max_pixels=2**16)
            except ImageError:
                continue
            assert image.pixels.shape[2] == 3


def test_empty_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.png", tmp_path / "notes.jpg"
    empty.touch()
    text.write_text("This is no photograph." * 9)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    for source, message in (
        (empty, r"empty\.png is empty"),
        (b"", "is empty"),
        (io.BytesIO(), "is empty"),
        (text, r"notes\.jpg is not an image"),
        (postscript, "is not an image"),
        (tmp_path / "none.png", r"none\.png cannot be opened .*No such file"),
        (tmp_path, "it is a folder"),
        ("a\0b", "cannot be opened"),
        (io.StringIO("text"), "StringIO holds no image"),
        (12, "int holds no image"),
    ):
        with pytest.raises(ImageError, match=message):
            images.load(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [2**31 - 1, 2**17])
def test_huge_header_is_refused_before_anything_is_allocated(side: int) -> None:
    data = png_header(side, side)
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"claims .* pixels"):
        images.load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_pixel_bound_is_the_callers_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(20, 20)
    monkeypatch.setattr("codec.image_modes._STRIP_PIXELS", 20)  # Pillow checks strips as well
    for format_name in ("PNG", "TIFF"):
        data = encoded(PIL.Image.fromarray(pixels), format_name)
        for bound in (300, 100):  # above the first Pillow warns, above twice the second it refuses
            monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", bound)
            np.testing.assert_array_equal(images.load(data).pixels, pixels)
            assert bound == PIL.Image.MAX_IMAGE_PIXELS
        for bound in (399, 10):
            with pytest.raises(ImageError, match=r"claims .* expected 1 to \d+ in all"):
                images.load(data, max_pixels=bound)
        assert images.load(data, max_pixels=400).height == 20
    with pytest.raises(ImageError, match="a side"):
        images.load(png_header(2**20 + 1, 1))


def test_threads_load_side_by_side_and_leave_settings_alone() -> None:
    data = [encoded(PIL.Image.fromarray(noise(20, 20, seed=seed)), "TIFF") for seed in range(8)]
    before = (PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda file: images.load(file).pixels, data * 8))
    assert (PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    for index, pixels in enumerate(loaded):
        np.testing.assert_array_equal(pixels, noise(20, 20, seed=index % 8))
