"""Sources, saving, padding, value ranges and finding files."""

import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pictures import noise

from codec import images
from codec.images import ImageError

Pixels = images.Pixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (33, 17)])
def test_rgb_file_comes_back_exactly(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    path = tmp_path / "image.png"
    images.save(pixels, path)
    image = images.load(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.height, image.width) == shape
    assert not image.is_gray
    assert image.warnings == ()
    assert image.pixels.flags.c_contiguous
    assert image.pixels.dtype == np.uint8


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    pixels = noise(9, 11)
    path = tmp_path / "image.png"
    images.save(pixels, path)
    data = path.read_bytes()
    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.close(write_end)
    with open(read_end, "rb") as pipe, path.open("rb") as file:
        sources = [path, str(path), data, io.BytesIO(data), file, pipe, pixels]
        loaded = [images.load(source).pixels for source in sources]
        assert not file.closed
    with PIL.Image.open(path) as picture:
        loaded.append(images.load(picture).pixels)
    for result in loaded:
        np.testing.assert_array_equal(result, pixels)


def test_gray_round_trip_is_saved_as_one_channel(tmp_path: Path) -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = images.load(gray)
    path = tmp_path / "gray.png"
    images.save(image.pixels, path, is_gray=image.is_gray)
    with PIL.Image.open(path) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), gray)


# --- Saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "PNG", "tif", "bmp", "ppm", "jp2"])
@pytest.mark.parametrize("is_gray", [False, True])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str, is_gray: bool) -> None:
    pixels = noise(16, 24)
    if is_gray:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    path = tmp_path / f"out.{suffix}"
    images.save(pixels, path, is_gray=is_gray)
    image = images.load(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.is_gray is is_gray


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF"])
def test_quality_rules_the_size_of_lossy_formats(format_name: str) -> None:
    pixels = noise(64, 64)
    sizes = []
    for quality in (10, 50, None):
        stream = io.BytesIO()
        images.save(pixels, stream, format=format_name.lower(), quality=quality)
        sizes.append(len(stream.getvalue()))
        assert images.load(stream.getvalue()).pixels.shape == (64, 64, 3)
    assert sizes[0] < sizes[1] < sizes[2]


def test_stream_that_cannot_seek_gets_a_png() -> None:
    pixels = noise(8, 8)
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as source:
        with open(write_end, "wb") as sink:
            images.save(pixels, sink)
        np.testing.assert_array_equal(images.load(source).pixels, pixels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.txt", {}, "cannot write an image as '.txt'"),
        ("out", {}, "without a suffix"),
        ("out.png", {"format": "EPS"}, "as 'EPS'"),
        ("out.png", {"quality": 50}, "quality 50 does not fit PNG"),
        ("out.jpg", {"quality": 0}, "quality 0 does not fit JPEG"),
        ("out.jpg", {"quality": 101}, "quality 101 does not fit JPEG"),
    ],
)
def test_what_cannot_be_saved_says_why(
    tmp_path: Path, name: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        images.save(noise(4, 4), tmp_path / name, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_save_makes_the_folder_unless_a_file_is_in_the_way(tmp_path: Path) -> None:
    images.save(noise(4, 4), tmp_path / "new" / "out.png")
    with pytest.raises(ImageError, match="cannot be written"):
        images.save(noise(4, 4), tmp_path / "new" / "out.png" / "other.png")


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.jpg"
    path.write_bytes(b"old")
    too_wide = np.zeros((1, 70000, 3), dtype=np.uint8)
    with pytest.raises(ImageError, match=r"out\.jpg cannot be written as JPEG"):
        images.save(too_wide, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_writes_through_links_and_leaves_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.touch()
    link.symlink_to(target)
    images.save(noise(4, 4), link)
    assert link.is_symlink()
    assert images.load(target).height == 4
    images.save(noise(4, 4), os.devnull, format="PNG")
    assert not Path(os.devnull).is_file()


def test_saved_files_have_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    images.save(noise(4, 4), tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4), dtype=np.uint8)])
def test_other_arrays_are_not_saved(pixels: Pixels) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \(height, width, 3\)"):
        images.to_pil(pixels)


# --- Padding, ranges, finding --------------------------------------------------------------------


def test_pad_repeats_the_edge() -> None:
    pixels = noise(5, 9)
    padded = images.pad(pixels, 8)
    assert padded.shape == (8, 16, 3)
    np.testing.assert_array_equal(padded[:5, :9], pixels)
    np.testing.assert_array_equal(padded[7, :9], pixels[4])
    np.testing.assert_array_equal(padded[:5, 15], pixels[:, 8])
    assert images.pad(padded, 8) is padded
    with pytest.raises(ImageError, match="multiples of 0"):
        images.pad(pixels, 0)


def test_unit_range_and_back_is_exact() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    unit = images.to_unit(pixels)
    assert unit.shape == (3, 16, 16)
    assert unit.dtype == np.float32
    assert unit.flags.c_contiguous
    assert (unit.min(), unit.max()) == (-1, 1)
    back = images.from_unit(unit)
    np.testing.assert_array_equal(back, pixels)
    assert back.flags.c_contiguous


def test_from_unit_clamps_rounds_and_refuses_nan() -> None:
    unit = np.array([-np.inf, -3, -1, 0, 1, 7], dtype=np.float32).reshape(1, 1, 6)
    assert images.from_unit(unit)[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    with pytest.raises(ImageError, match="NaN"):
        images.from_unit(np.full((3, 2, 2), np.nan, dtype=np.float32))


def test_find_lists_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/.d.png", ".cache/e.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    in_folder = [tmp_path / name for name in ("a.JPG", "b.png", "sub/c.webp")]
    assert images.find([tmp_path]) == in_folder
    assert images.find([tmp_path / "b.png", tmp_path]) == [in_folder[1], in_folder[0], in_folder[2]]
    assert images.find([str(tmp_path / "*.png")]) == [tmp_path / "b.png"]
    assert images.find([str(tmp_path / "**/*.webp")]) == [tmp_path / "sub/c.webp"]
    assert images.find([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    assert images.find([tmp_path], suffixes={".txt"}) == [tmp_path / "notes.txt"]
    assert images.find([]) == []


def test_find_takes_a_file_named_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "photo[1].png"
    path.touch()
    assert images.find([str(path)]) == [path]


def test_find_says_what_was_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        images.find([tmp_path / "none.png"])
    for given in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(ImageError, match=r"nothing was found for .*\.webp"):
            images.find([given])
