"""Every mode, alpha and orientation becomes upright sRGB."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
from pictures import encoded, noise
from PIL import ImageOps

from codec import images
from codec.images import ImageError

Pixels = images.Pixels


def png(
    width: int, height: int, bits: int, colour_type: int, rows: bytes, **chunks: bytes
) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
    data = (
        chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_modes_stay_gray(mode: str) -> None:
    picture = PIL.Image.fromarray(noise(6, 5, 1)).convert(mode)
    image = images.load(encoded(picture))
    assert image.is_gray
    expected = np.asarray(picture.convert("L"))
    for channel in range(3):
        np.testing.assert_array_equal(image.pixels[..., channel], expected)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBA"])
def test_colour_modes_convert_as_pillow_does(mode: str) -> None:
    picture = PIL.Image.fromarray(noise(8, 8))
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    image = images.load(picture)
    np.testing.assert_array_equal(image.pixels, np.asarray(picture.convert("RGB")))
    assert not image.is_gray
    assert image.warnings == ()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF")]
)
def test_colour_files_convert(mode: str, suffix: str) -> None:
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    picture = PIL.Image.fromarray(smooth).convert(mode)
    image = images.load(encoded(picture, suffix))
    difference = np.abs(image.pixels.astype(int) - np.asarray(picture.convert("RGB")))
    assert difference.mean() < 8


SIXTEEN = np.array([[0, 1, 128, 129, 200], [257, 32768, 40000, 65406, 65535]], dtype=np.uint16)
SIXTEEN_AS_EIGHT = np.rint(SIXTEEN / 257).astype(np.uint8)


def test_sixteen_bit_gray_is_rounded_and_not_clipped() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in SIXTEEN)
    sources: list[images.Source] = [
        png(5, 2, 16, 0, rows),
        encoded(PIL.Image.fromarray(SIXTEEN), "TIFF"),
        PIL.Image.fromarray(SIXTEEN.astype(np.int32)),
        b"P5 5 2 65535\n" + SIXTEEN.astype(">u2").tobytes(),
        SIXTEEN,
        SIXTEEN[..., None],
    ]
    for source in sources:
        image = images.load(source)
        assert image.is_gray
        np.testing.assert_array_equal(image.pixels[..., 1], SIXTEEN_AS_EIGHT)


def test_twelve_bit_tiff_is_not_taken_for_a_dark_sixteen_bit_one() -> None:
    # Width 2, height 1, 12 bits, no compression, black is zero, one strip of 3 bytes at offset 8.
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (278, 1), (279, 3)]
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    data = b"II*\0" + struct.pack("<I", 12) + b"\x80\x0f\xff\0"  # 0x80f, 0xfff
    data += struct.pack("<H", len(entries)) + directory + b"\0" * 4
    image = images.load(data)
    assert image.is_gray
    assert image.pixels[0, :, 0].tolist() == [round(0x80F * 255 / 4095), 255]


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    rows = b"\0" + np.array([0, 128, 257 * 100, 65535, 257, 256], dtype=">u2").tobytes()
    image = images.load(png(2, 1, 16, 2, rows))
    assert image.pixels.tolist() == [[[0, 0, 100], [255, 1, 1]]]
    array = np.array([[[0, 257 * 100, 65535]]], dtype=np.uint16)
    assert images.load(array).pixels.tolist() == [[[0, 100, 255]]]


@pytest.mark.parametrize("value", [-1, 70000])
def test_integers_beyond_sixteen_bits_are_refused(value: int) -> None:
    with pytest.raises(ImageError, match=r"outside 0\.\.65535.*uint8"):
        images.load(PIL.Image.fromarray(np.array([[0, value]], dtype=np.int32)))


def test_floating_point_pictures_and_arrays_are_refused() -> None:
    with pytest.raises(ImageError, match=r"mode 'F'.*scale the values"):
        images.load(PIL.Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(ImageError, match="dtype float64"):
        images.load(np.zeros((2, 2, 3)))


@pytest.mark.parametrize("shape", [(3, 8, 8), (4,), (2, 2, 2, 3), (0, 4, 3), (4, 4, 5)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="channels last"):
        images.load(np.zeros(shape, dtype=np.uint8))


# --- Alpha ---------------------------------------------------------------------------------------


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    weight = alpha.astype(float)[..., None] / 255
    return np.rint(colour * weight + 255 * (1 - weight)).astype(np.uint8)


def assert_composited(source: images.Source, expected: Pixels, is_gray: bool = False) -> None:
    image = images.load(source)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.is_gray is is_gray
    assert len(image.warnings) == 1
    assert "composited over white" in image.warnings[0]
    with pytest.raises(ImageError, match="partly transparent"):
        images.load(source, strict=True)


def test_alpha_is_composited_over_white() -> None:
    rgba = noise(64, 64, 4)
    expected = over_white(rgba[..., :3], rgba[..., 3])
    assert_composited(encoded(PIL.Image.fromarray(rgba)), expected)
    assert_composited(
        encoded(PIL.Image.fromarray(rgba), "WEBP", lossless=True, exact=True), expected
    )
    assert_composited(rgba, expected)


def test_gray_alpha_is_composited_and_stays_gray() -> None:
    la = noise(16, 16, 2)
    expected = over_white(np.repeat(la[..., :1], 3, axis=2), la[..., 1])
    assert_composited(encoded(PIL.Image.fromarray(la)), expected, is_gray=True)
    assert_composited(la, expected, is_gray=True)


def test_premultiplied_alpha_is_understood() -> None:
    rgba = PIL.Image.new("RGBA", (2, 2), (200, 100, 50, 255)).convert("RGBa")
    assert images.load(rgba).pixels[0, 0].tolist() == [200, 100, 50]
    la = PIL.Image.merge("LA", [PIL.Image.new("L", (2, 2), 100), PIL.Image.new("L", (2, 2), 255)])
    image = images.load(la.convert("La"))
    assert image.is_gray
    assert (image.pixels == 100).all()


@pytest.mark.parametrize("alphas", [b"\x00\xff\xff\xff", b"\x80\xff\x10\xff"])
def test_palette_transparency_is_composited(alphas: bytes) -> None:
    colours = noise(1, 4)[0]
    picture = PIL.Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 4)
    picture = PIL.Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(colours.tobytes())
    index = np.asarray(picture)
    alpha = np.frombuffer(alphas, dtype=np.uint8)[index]
    data = encoded(picture, "PNG", transparency=alphas)
    assert_composited(data, over_white(colours[index], alpha))


def test_palette_with_an_alpha_channel_is_composited() -> None:
    picture = PIL.Image.fromarray(noise(4, 4)).quantize(8).convert("PA")
    picture.putalpha(PIL.Image.new("L", (4, 4), 0))
    assert_composited(picture, np.full((4, 4, 3), 255, dtype=np.uint8))


def test_a_transparent_colour_is_composited() -> None:
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    data = encoded(PIL.Image.fromarray(rgb), "PNG", transparency=(1, 2, 3))
    assert images.load(data).pixels.tolist() == [[[255, 255, 255], [4, 5, 6]]]
    gray = encoded(PIL.Image.fromarray(rgb[..., 0]), "PNG", transparency=4)
    assert images.load(gray).pixels[..., 0].tolist() == [[1, 255]]
    bilevel = encoded(PIL.Image.new("1", (2, 1), 0), "PNG", transparency=0)
    assert images.load(bilevel).pixels[..., 0].tolist() == [[255, 255]]
    rows = b"\0" + np.array([200, 25700], dtype=">u2").tobytes()
    sixteen = images.load(png(2, 1, 16, 0, rows, tRNS=struct.pack(">H", 200)))
    assert sixteen.pixels[..., 0].tolist() == [[255, 100]]
    assert len(sixteen.warnings) == 1


def test_opaque_alpha_is_no_matter_for_a_warning() -> None:
    rgba = noise(8, 8, 4)
    rgba[..., 3] = 255
    image = images.load(encoded(PIL.Image.fromarray(rgba)), strict=True)
    np.testing.assert_array_equal(image.pixels, rgba[..., :3])
    assert image.warnings == ()


# --- Orientation and memory ----------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, format_name: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(PIL.Image.fromarray(noise(7, 13)), format_name, exif=exif, **options)
    with PIL.Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    image = images.load(data)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.pixels.shape == ((13, 7, 3) if orientation > 4 else (7, 13, 3))
    assert image.pixels.flags.c_contiguous
    assert image.warnings == ()


def test_many_strips_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encoded(PIL.Image.fromarray(noise(37, 11, 4)), exif=exif)
    whole = images.load(data).pixels
    monkeypatch.setattr("codec.image_modes._STRIP_PIXELS", 40)
    np.testing.assert_array_equal(images.load(data).pixels, whole)


@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_damaged_exif_is_no_obstacle(block: bytes) -> None:
    data = encoded(PIL.Image.fromarray(noise(8, 8)), "JPEG", exif=block)
    assert images.load(data).pixels.shape == (8, 8, 3)


def test_loading_needs_little_more_than_the_result() -> None:
    """NumPy's share: the result and a strip (Pillow's own 4 bytes a pixel are not traced)."""
    data = encoded(PIL.Image.new("RGB", (4096, 2048), (10, 20, 30)), "PNG", compress_level=1)
    tracemalloc.start()
    image = images.load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.pixels.nbytes <= peak < 1.6 * image.pixels.nbytes
