"""ICC profiles, made by hand (Pillow can only create sRGB, Lab and XYZ ones), become sRGB."""

import struct

import numpy as np
import PIL.Image
import pytest
from pictures import encoded, noise
from PIL import ImageCms
from profiles import gamma, icc, rgb_profile_with_red_and_green_swapped

from codec import images

Pixels = images.Pixels


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
