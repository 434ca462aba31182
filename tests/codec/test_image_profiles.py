"""ICC profiles, made by hand (Pillow can only create sRGB, Lab and XYZ ones), become sRGB."""

import struct

import numpy as np
import PIL.Image
import pytest
from pictures import encoded, noise
from PIL import ImageCms

from codec import images

Pixels = images.Pixels


def icc(space: bytes, device_class: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 2 profile (ICC.1:2001-04) of the given tags."""
    text = b"text\0\0\0\0none\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78, **tags}
    tags |= {b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += name + struct.pack(">II", offset, len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    size = 128 + len(table) + len(body)
    white = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    header = struct.pack(">I4sI", size, b"\0" * 4, 0x02400000) + device_class + space + pcs
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return header.ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile_with_red_and_green_swapped() -> bytes:
    red, green = xyz(0.4361, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971)
    columns = {b"rXYZ": green, b"gXYZ": red, b"bXYZ": xyz(0.1431, 0.0606, 0.7141)}
    curves = {name: gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return icc(b"RGB ", b"mntr", b"XYZ ", columns | curves)


def cmyk_profile_where_black_ink_is_white() -> bytes:
    identity = bytes(range(256))
    lightness = [255 * (corner & 1) for corner in range(16)]  # K varies fastest
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(65536 * (index % 4 == 0) for index in range(9)))
    lut += identity * 4 + b"".join(bytes([value, 128, 128]) for value in lightness) + identity * 3
    return icc(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut})


def test_profile_is_converted_to_srgb() -> None:
    profile = rgb_profile_with_red_and_green_swapped()
    red = PIL.Image.new("RGB", (3, 2), (255, 0, 0))
    image = images.load(encoded(red, icc_profile=profile))
    assert image.warnings == ()
    assert np.abs(image.pixels.astype(int) - [0, 255, 0]).max() <= 2
    translucent = PIL.Image.new("RGBA", (3, 2), (255, 0, 0, 51))
    image = images.load(encoded(translucent, icc_profile=profile))
    assert np.abs(image.pixels.astype(int) - [204, 255, 204]).max() <= 2


def test_gray_profile_is_converted_and_stays_gray() -> None:
    linear = icc(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": gamma(1.0)})
    data = encoded(PIL.Image.new("L", (2, 2), 55), icc_profile=linear)
    image = images.load(data)
    assert image.is_gray
    assert image.warnings == ()
    assert abs(int(image.pixels[0, 0, 0]) - 128) <= 1  # sRGB's curve takes 0.2158 to 0.502


def test_gray_with_an_rgb_profile_is_converted() -> None:
    profile = rgb_profile_with_red_and_green_swapped()
    image = images.load(encoded(PIL.Image.new("L", (2, 2), 128), "JPEG", icc_profile=profile))
    assert image.is_gray
    assert image.warnings == ()
    assert abs(int(image.pixels[0, 0, 0]) - 128) <= 3


def test_cmyk_profile_is_converted() -> None:
    profile = cmyk_profile_where_black_ink_is_white()
    black = PIL.Image.new("CMYK", (2, 2), (0, 0, 0, 255))
    assert images.load(encoded(black, "TIFF")).pixels.max() == 0
    image = images.load(encoded(black, "TIFF", icc_profile=profile))
    assert image.warnings == ()
    assert image.pixels.min() >= 254


def test_srgb_under_any_name_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(32, 32)
    image = images.load(encoded(PIL.Image.fromarray(pixels), icc_profile=profile))
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize(
    "profile", [b"garbage", icc(b"CMYK", b"prtr", b"Lab ", {}), icc(b"RGB ", b"mntr", b"XYZ ", {})]
)
def test_broken_or_foreign_profile_is_a_warning(profile: bytes) -> None:
    pixels = noise(4, 4)
    image = images.load(encoded(PIL.Image.fromarray(pixels), icc_profile=profile), strict=True)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert len(image.warnings) == 1
    assert "colour profile" in image.warnings[0]
