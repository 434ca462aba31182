"""EXIF, profile and text go through files of every format, and never onto a terminal."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pictures import encoded, noise
from pieces import EXIF_IFD, GPS_IFD, MAKE, ORIENTATION, TAKEN, camera_exif, texts, with_chunks
from PIL import ImageCms
from profiles import rgb_profile_with_red_and_green_swapped

from codec import Codec, bitstream, catalog, console, exif, images
from codec.bitstream import Chunk
from codec.cli import app
from codec.image_metadata import srgb_profile
from codec.images import Pixels
from codec.metadata import Metadata, text_chunk

MakePixels = Callable[..., Pixels]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, device="cpu", dtype="fp32")


def saved(image: images.Image, format_name: str) -> tuple[PIL.Image.Image, tuple[str, ...]]:
    """What a decoder writes, opened again."""
    stream = io.BytesIO()
    notes = images.save(
        image.pixels,
        stream,
        is_gray=image.is_gray,
        format=format_name,
        metadata=image.metadata,
    )
    return PIL.Image.open(io.BytesIO(stream.getvalue())), notes


# --- EXIF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_goes_through_every_format_that_holds_it(
    codec: Codec, pixels: MakePixels, source: str
) -> None:
    data = encoded(PIL.Image.fromarray(pixels(16, 40)), source, exif=camera_exif(6))
    image = codec.reconstruct(codec.compress(data, keep_metadata=True, strict=True))
    assert (image.height, image.width) == (40, 16)
    assert image.warnings == ()
    for target in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        picture, notes = saved(image, target)
        assert notes == ()
        tags = picture.getexif()
        assert tags.get(ORIENTATION, 1) == 1
        assert tags[MAKE] == "A maker of cameras"
        assert tags.get_ifd(EXIF_IFD)[TAKEN] == "2024:05:06 07:08:09"
        assert tags.get_ifd(GPS_IFD)[1] == "N"
        assert images.load(picture).pixels.shape == (40, 16, 3)


def test_bytes_of_exif_stay_as_they_are() -> None:
    block = camera_exif().tobytes()
    image = images.load(encoded(PIL.Image.fromarray(noise(8, 8)), exif=block), keep_metadata=True)
    assert image.metadata == Metadata(exif=block.removeprefix(b"Exif\0\0"))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_not_applied_twice(
    codec: Codec, pixels: MakePixels, orientation: int
) -> None:
    data = encoded(PIL.Image.fromarray(pixels(24, 40)), exif=camera_exif(orientation))
    file = codec.compress(data, keep_metadata=True)
    decoded = codec.decompress(file)
    assert decoded.tobytes() == codec.decompress(codec.compress(data)).tobytes()
    stream = io.BytesIO()
    decoded.save(stream, "PNG", exif=decoded.info["exif"])
    again = images.load(stream.getvalue(), keep_metadata=True)
    np.testing.assert_array_equal(again.pixels, np.asarray(decoded))


@pytest.mark.parametrize(
    "key_and_value",
    [
        ("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>'),
        ("Raw profile type exif", "\nexif\n4\n" + camera_exif(6).tobytes().hex()),
    ],
)
def test_orientation_in_text_is_not_applied_twice(
    codec: Codec, pixels: MakePixels, key_and_value: tuple[str, str]
) -> None:
    picture = PIL.Image.fromarray(pixels(16, 40))
    data = encoded(picture, pnginfo=texts(key_and_value, ("Title", "kept")))
    image = codec.reconstruct(
        codec.compress(images.load(data, keep_metadata=True), keep_metadata=True)
    )
    assert image.pixels.shape == (40, 16, 3)
    assert image.metadata is not None
    assert image.metadata.text == (("Title", "kept"),)
    assert images.load(saved(image, "PNG")[0]).pixels.shape == (40, 16, 3)


def test_layout_of_a_tiff_file_is_no_metadata(codec: Codec, pixels: MakePixels) -> None:
    data = encoded(PIL.Image.fromarray(pixels(16, 16)), "TIFF", compression="tiff_lzw")
    file = codec.compress(data, keep_metadata=True)
    assert bitstream.loads(file).chunks == ()
    with_layout = PIL.Image.Exif()
    with_layout[0x0100], with_layout[0x0111], with_layout[MAKE] = 9999, 77, "maker"
    chunk = Chunk("eXIF", exif.clean_exif(with_layout.tobytes()))
    picture, notes = saved(codec.reconstruct(with_chunks(file, chunk)), "TIFF")
    assert notes == ()
    assert (picture.size, picture.getexif()[MAKE]) == ((16, 16), "maker")
    assert images.load(picture).height == 16


def test_exif_that_pillow_cannot_rewrite_is_left_out() -> None:
    rational = exif.clean_exif(
        b"II*\0\x08\0\0\0\x01\0" + b"\x1a\x01\x0c\0\x01\0\0\0\x1a\0\0\0" + bytes(4) + b"\xff" * 8
    )
    stream = io.BytesIO()
    notes = images.save(noise(8, 8), stream, format="TIFF", metadata=Metadata(exif=rational))
    assert images.load(stream.getvalue()).height == 8
    assert notes in ((), ("TIFF cannot hold the EXIF data of the file: left out",))


# --- Colour profile ------------------------------------------------------------------------------


def test_profile_is_for_information_and_decoded_files_say_srgb(
    codec: Codec, pixels: MakePixels
) -> None:
    profile = rgb_profile_with_red_and_green_swapped()
    data = encoded(PIL.Image.fromarray(pixels(16, 16)), icc_profile=profile)
    file = codec.compress(data, keep_metadata=True)
    assert bitstream.loads(file).chunks == (Chunk("iCCP", profile),)
    image = codec.reconstruct(file)
    assert image.metadata == Metadata(icc_profile=profile)
    for target in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        picture, notes = saved(image, target)
        assert notes == ()
        assert picture.info["icc_profile"] == srgb_profile()
        difference = np.abs(images.load(picture).pixels.astype(int) - image.pixels)
        assert difference.mean() < (12 if target in ("JPEG", "WEBP", "AVIF") else 0.001)
    np.testing.assert_array_equal(images.load(codec.decompress(file)).pixels, image.pixels)


def test_srgb_under_any_name_costs_no_bytes(codec: Codec, pixels: MakePixels) -> None:
    data = encoded(PIL.Image.fromarray(pixels(16, 16)), icc_profile=SRGB)
    file = codec.compress(data, keep_metadata=True)
    assert bitstream.loads(file).chunks == (Chunk("iCCP", b""),)
    assert saved(codec.reconstruct(file), "PNG")[0].info["icc_profile"] == srgb_profile()


def test_gray_and_untagged_pictures_get_no_profile(codec: Codec, pixels: MakePixels) -> None:
    gray = encoded(PIL.Image.fromarray(pixels(16, 16)[..., 0]), "JPEG", icc_profile=SRGB)
    image = codec.reconstruct(codec.compress(gray, keep_metadata=True))
    assert image.is_gray
    assert "icc_profile" not in saved(image, "PNG")[0].info
    plain = codec.compress(pixels(16, 16), keep_metadata=True)
    assert bitstream.loads(plain).chunks == ()
    assert codec.decompress(plain).info == {}


# --- Text ----------------------------------------------------------------------------------------


def test_text_comes_back_in_png_and_the_comment_in_jpeg(codec: Codec, pixels: MakePixels) -> None:
    pairs = (("Title", "Zwölf Boxkämpfer"), ("Comment", "日本語\nline"), ("Author", ""))
    data = encoded(PIL.Image.fromarray(pixels(16, 16)), pnginfo=texts(*pairs))
    image = codec.reconstruct(codec.compress(data, keep_metadata=True, strict=True))
    assert image.metadata == Metadata(text=pairs)
    picture, notes = saved(image, "PNG")
    picture.load()
    assert (picture.text, notes) == (dict(pairs), ())  # type: ignore[attr-defined]
    for target, left_out in (("JPEG", 2), ("JPEG2000", 2), ("WEBP", 3), ("BMP", 3)):
        picture, notes = saved(image, target)
        assert len(notes) == 1
        assert f"{target} cannot hold {left_out} pieces of text" in notes[0]
        if left_out == 2:
            assert picture.info["comment"].decode() == "日本語\nline"


@pytest.mark.parametrize("format_name", ["JPEG", "GIF", "JPEG2000"])
def test_comment_is_text(format_name: str) -> None:
    for stored, text in ((b"caf\xc3\xa9", "café"), (b"caf\xe9", "café")):
        data = encoded(PIL.Image.fromarray(noise(16, 16)), format_name, comment=stored)
        image = images.load(data, keep_metadata=True)
        assert image.metadata == Metadata(text=(("Comment", text),))


def test_text_never_reaches_a_terminal(
    tmp_path: Path,
    pixels: MakePixels,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(model_dir))
    monkeypatch.setattr(catalog, "DEFAULT_MODEL", "tiny")
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    source, packed = tmp_path / "in.png", tmp_path / "in.lc"
    info = texts(("Title", evil), (evil, "value"))
    PIL.Image.fromarray(pixels(16, 16)).save(source, pnginfo=info, exif=evil.encode())
    hostile = [text_chunk("Author", evil), text_chunk(evil, "x"), Chunk("eXIF", evil.encode())]
    for words in (
        ("encode", source, "-o", packed, "--keep-metadata"),
        ("info", packed),
        ("info", packed, "--json"),
        ("decode", packed, "-o", tmp_path / "back.png"),
        ("decode", packed, "-o", tmp_path / "back.jpg"),
    ):
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in words])
        assert ended.value.code in (0, None)
        printed = "".join(capsys.readouterr())
        assert printed.replace("\n", "").isprintable()
        if words[0] == "encode":
            assert printed.count("warning: ") == 3
            packed.write_bytes(with_chunks(packed.read_bytes(), *hostile))
    with PIL.Image.open(tmp_path / "back.png") as back:
        back.load()
        assert back.text == {"Author": evil}  # type: ignore[attr-defined]
