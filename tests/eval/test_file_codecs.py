"""Classic codecs do what their settings say; ours makes the files that everyone gets."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import PIL.features
import PIL.Image
import pytest
from numpy.typing import NDArray

from codec import images
from codec.pipeline import Codec
from eval.baselines import jpeg_at_size
from eval.file_codecs import CLASSIC, JPEG, ModelCodec, PillowError, UnquantizedLatents

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def codec() -> Codec:
    """The embedded model."""
    return Codec.from_pretrained(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def image(pixels: Callable[..., Pixels]) -> images.Image:
    return images.Image(pixels(62, 90))


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize("name", sorted(CLASSIC))
def test_a_round_trip_shows_what_pillow_reads(name: str, image: images.Image) -> None:
    trip = CLASSIC[name].round_trip(image, 50)
    with opened(trip.data) as picture:
        assert picture.format == CLASSIC[name].pillow_format
        assert np.array_equal(np.asarray(picture.convert("RGB")), trip.reconstruction.pixels)
    smaller = CLASSIC[name].encode(image, 10)
    assert len(smaller) < len(trip.data)
    assert CLASSIC[name].encode(image, 10) == smaller


@pytest.mark.parametrize(("name", "sampling"), [("jpeg", (2, 2)), ("jpeg444", (1, 1))])
def test_jpegs_have_the_sampling_and_scans_that_are_stated(
    name: str, sampling: tuple[int, int], image: images.Image
) -> None:
    with opened(CLASSIC[name].encode(image, 50)) as picture:
        assert picture.layer[0][1:3] == sampling  # type: ignore[attr-defined]
        assert "progressive" in picture.info


def test_colour_is_sharper_without_subsampling(image: images.Image) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    for name in ("jpeg", "avif"):
        errors = [
            np.abs(
                CLASSIC[chosen].round_trip(images.Image(stripes), 90).reconstruction.pixels
                - stripes.astype(int)
            ).mean()
            for chosen in (name, f"{name}444")
        ]
        assert errors[1] < errors[0] / 2


def test_the_identity_names_options_and_library() -> None:
    identities = {classic.identity for classic in CLASSIC.values()}
    assert len(identities) == len(CLASSIC)
    other = replace(JPEG, options={**JPEG.options, "optimize": False})
    assert other.identity not in identities
    assert str(PIL.features.version("avif")) in CLASSIC["avif"].settings


def test_a_picture_that_does_not_fit_is_one_sentence() -> None:
    wide = images.Image(np.zeros((1, 16_384, 3), np.uint8))
    with pytest.raises(PillowError, match="writes no WEBP of 16384x1 pixels"):
        CLASSIC["webp"].encode(wide, 50)
    with pytest.raises(PillowError, match="writes no NONE"):
        replace(JPEG, pillow_format="NONE").encode(wide, 50)


def test_the_jpeg_baseline_is_the_same_jpeg(image: images.Image) -> None:
    baseline = jpeg_at_size(image, 2000)
    assert baseline.data == JPEG.encode(image, baseline.quality)


def test_ours_is_what_compress_and_decompress_give(codec: Codec, image: images.Image) -> None:
    trip = ModelCodec(codec, (30, 50)).round_trip(image, 30)
    assert trip.data == codec.compress(image.pixels, quality=30)
    shown = np.asarray(codec.decompress(trip.data))
    assert np.array_equal(trip.reconstruction.pixels, shown)


def test_unquantised_latents_are_the_limit_of_small_steps(
    codec: Codec, image: images.Image
) -> None:
    alone = UnquantizedLatents(codec).round_trip(image, None)
    fine = codec.reconstruct(codec.compress(image, step=2**-12))
    assert alone.data == b""
    assert alone.reconstruction.pixels.shape == image.pixels.shape
    difference = alone.reconstruction.pixels.astype(int) - fine.pixels
    assert np.abs(difference).max() <= 1


def test_identities_of_models_differ_by_ids_and_dtype(codec: Codec) -> None:
    ours = ModelCodec(codec, (50,))
    half = ModelCodec(Codec.from_pretrained(device="cpu", dtype="bf16"), (50,))
    assert ours.identity == ModelCodec(codec, (1,)).identity
    assert len({ours.identity, half.identity, UnquantizedLatents(codec).identity}) == 3
    assert codec.info is not None
    assert codec.info.coder_id in ours.identity
