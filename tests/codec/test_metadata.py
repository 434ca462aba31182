"""Pieces of metadata within their bounds are kept, all others left out with a sentence."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise
from pieces import camera_exif, texts, with_chunks
from PIL import ImageCms
from profiles import rgb_profile_with_red_and_green_swapped

from codec import Codec, bitstream, exif, images, metadata
from codec.bitstream import BitstreamError, Chunk
from codec.images import ImageError, Pixels
from codec.metadata import Metadata, MetadataError, read_metadata, text_chunk
from codec.pipeline import ImageWarning

MakePixels = Callable[..., Pixels]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, device="cpu", dtype="fp32")


def small_exif() -> bytes:
    return exif.clean_exif(camera_exif().tobytes())


# --- Bounds and damage ---------------------------------------------------------------------------

FITTING = [
    Chunk("eXIF", small_exif()),
    Chunk("iCCP", SRGB),
    text_chunk("K" * 79, "v" * metadata.MAX_VALUE_BYTES),
]


def big_profile(size: int) -> bytes:
    return bytes(36) + b"acsp" + bytes(size - 40)


def test_pieces_at_their_bounds_are_kept() -> None:
    kept, notes = read_metadata(FITTING, "it")
    assert notes == ()
    assert kept is not None
    assert list(kept.chunks()) == FITTING
    most = [text_chunk("k", str(number)) for number in range(metadata.MAX_TEXTS)]
    kept, notes = read_metadata(most, "it")
    assert notes == ()
    assert list(kept.chunks()) == most  # type: ignore[union-attr]
    largest = Chunk("iCCP", big_profile(metadata.MAX_PROFILE_BYTES))
    assert read_metadata([largest], "it") == (Metadata(icc_profile=largest.body), ())


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Chunk("eXIF", b""), "EXIF data that cannot be kept: EXIF data begin with b''"),
        (Chunk("eXIF", small_exif()[:-1]), "refer to byte"),
        (Chunk("iCCP", b"garbage"), "a colour profile that cannot be kept: .*mark of an ICC"),
        (Chunk("iCCP", big_profile(metadata.MAX_PROFILE_BYTES + 1)), "expected at most 262144"),
        (Chunk("tEXT", b""), "text that cannot be kept: found text without a key"),
        (Chunk("tEXT", b"Title"), "without a key"),
        (Chunk("tEXT", b"\0value"), "a key of 0 characters"),
        (text_chunk("K" * 80, "v"), "a key of 80 characters"),
        (text_chunk("two  spaces", "v"), "printable"),
        (text_chunk(" before", "v"), "printable"),
        (text_chunk("line\n", "v"), "printable"),
        (text_chunk("日本", "v"), "printable"),
        (text_chunk("xml:com.adobe.xmp", "v"), "metadata other than text"),
        (text_chunk("Raw profile type icc", "v"), "metadata other than text"),
        (text_chunk("Title", "a\0b"), "zero byte in the value"),
        (Chunk("tEXT", b"Title\0\xff"), "not UTF-8"),
        (Chunk("tEXT", b"\xff\0v"), "not UTF-8"),
        (text_chunk("Title", "\ud800"), "not UTF-8"),
        (text_chunk("Title", "v" * (metadata.MAX_VALUE_BYTES + 1)), "a longer text"),
        (Chunk("tEXT", b"Title\0" + b"\xff" * 2**20), "a longer text"),
    ],
)
def test_one_bad_piece_is_left_out_with_a_sentence(chunk: Chunk, message: str) -> None:
    good = text_chunk("Title", "kept")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(read_metadata([chunk, good], "it")[1][0])
    kept, notes = read_metadata([chunk, good], "it")
    assert kept == Metadata(text=(("Title", "kept"),))
    assert len(notes) == 1
    assert notes[0].startswith("it has ")


def test_what_comes_too_often_or_to_too_much_is_left_out() -> None:
    twice = [Chunk("eXIF", small_exif())] * 2 + [Chunk("iCCP", b"")] * 2
    kept, notes = read_metadata(twice, "it")
    assert kept == Metadata(exif=small_exif(), icc_profile=b"")
    assert [note.endswith("found it twice; expected it once") for note in notes] == [True, True]
    many = [text_chunk("k", "v")] * (metadata.MAX_TEXTS + 2)
    kept, notes = read_metadata(many, "it")
    assert len(kept.text) == metadata.MAX_TEXTS  # type: ignore[union-attr]
    assert "49 pieces of text; expected at most 48" in notes[0]
    large = [text_chunk("k", "v" * metadata.MAX_VALUE_BYTES)] * 20
    kept, notes = read_metadata(large, "it")
    assert len(kept.text) == 16  # type: ignore[union-attr]
    assert "bytes of metadata; expected at most 1048576" in notes[0]


def test_metadata_made_by_hand_is_checked() -> None:
    with pytest.raises(MetadataError, match="pass them to clean_exif"):
        Metadata(exif=camera_exif(6).tobytes().removeprefix(b"Exif\0\0"))
    with pytest.raises(BitstreamError, match="expected the header"):
        Metadata(exif=b"nothing of the kind")
    with pytest.raises(MetadataError, match="half a character"):
        Metadata(text=(("Title", "\udc80"),))


def test_pictures_with_bad_pieces_warn_or_are_refused(codec: Codec, pixels: MakePixels) -> None:
    picture = PIL.Image.fromarray(pixels(16, 16))
    for options, message in (
        ({"exif": b"Exif\0\0garbage"}, "EXIF data that cannot be kept"),
        ({"icc_profile": rgb_profile_with_red_and_green_swapped() + bytes(2**18)}, "profile"),
        ({"pnginfo": texts(("Title", "v" * 70_000))}, "a longer text"),
        ({"pnginfo": texts(("Raw profile type exif", "\n\n\nno hexadecimal"))}, "cannot be read"),
    ):
        data = encoded(picture, **options)
        with pytest.warns(ImageWarning) as caught:
            file = codec.compress(data, keep_metadata=True)
        assert any(re.search(message, str(warning.message)) for warning in caught)
        assert bitstream.loads(file).chunks == ()
        with pytest.raises(ImageError, match=message):
            images.load(data, keep_metadata=True, strict=True)


def test_bad_chunks_of_a_file_warn_and_the_picture_is_shown(
    codec: Codec, pixels: MakePixels
) -> None:
    plain = codec.compress(pixels(16, 16))
    file = with_chunks(plain, Chunk("eXIF", b"1"), text_chunk("Title", "kept"), Chunk("noTE", b""))
    with pytest.warns(ImageWarning, match="the file has EXIF data that cannot be kept"):
        picture = codec.decompress(file)
    assert picture.info == {"text": (("Title", "kept"),)}
    assert picture.tobytes() == codec.decompress(plain).tobytes()


def test_metadata_stay_out_unless_they_are_wanted(codec: Codec, pixels: MakePixels) -> None:
    data = encoded(PIL.Image.fromarray(pixels(16, 16)), exif=camera_exif(), icc_profile=SRGB)
    plain = codec.compress(data)
    assert bitstream.loads(plain).chunks == ()
    assert codec.compress(images.load(data, keep_metadata=True)) == plain


_FUZZED = st.sampled_from(["eXIF", "iCCP", "tEXT", "noTE"])


@given(st.lists(st.builds(Chunk, _FUZZED, st.binary(max_size=120)), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_chunks_are_metadata_or_sentences(chunks: list[Chunk]) -> None:
    kept, notes = read_metadata(chunks, "it")
    assert all(note.isprintable() for note in notes)
    if kept is not None:
        assert read_metadata(kept.chunks(), "it") == (kept, ())


@st.composite
def _exif_bodies(draw: st.DrawFn) -> bytes:
    body = bytearray(small_exif())
    for _ in range(draw(st.integers(1, 5))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body)


@given(_exif_bodies())
@settings(max_examples=150, deadline=None)
def test_any_exif_of_a_file_can_be_saved_or_is_left_out(body: bytes) -> None:
    kept, _ = read_metadata([Chunk("eXIF", body)], "it")
    if kept is None:
        return
    for format_name in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF"):
        stream = io.BytesIO()
        images.save(noise(8, 8), stream, format=format_name, metadata=kept)
        assert images.load(stream.getvalue()).pixels.shape == (8, 8, 3)
