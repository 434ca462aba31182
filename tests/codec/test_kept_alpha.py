"""Transparent pictures of every make keep their alpha, through the codec and image files."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from pictures import encoded, noise, shape_mask
from pieces import with_chunks

from codec import Codec, bitstream, catalog, console, images
from codec.alpha import KIND, AlphaError, encode_alpha
from codec.bitstream import Chunk
from codec.cli import app
from codec.images import ImageError, Pixels
from codec.pipeline import ImageWarning

MakePixels = Callable[..., Pixels]


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, device="cpu", dtype="fp32")


def kinds(data: bytes) -> list[str]:
    return [chunk.kind for chunk in bitstream.loads(data).chunks]


def test_what_lies_under_transparency_changes_no_byte(codec: Codec, pixels: MakePixels) -> None:
    alpha = shape_mask()
    visible = pixels(48, 64)
    files = set()
    for hidden in (0, 255, noise(48, 64)):
        colours = np.where(alpha[..., None] == 0, hidden, visible).astype(np.uint8)
        files.add(codec.compress(np.dstack([colours, alpha]), alpha="keep"))
    assert len(files) == 1


# --- Pictures ------------------------------------------------------------------------------------


def rgba(pixels: MakePixels) -> Pixels:
    return np.dstack([pixels(48, 64), shape_mask()])


def sixteen_bit_png(colour_type: int, values: Pixels) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values.astype(np.uint16) * 257)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def sources(pixels: MakePixels) -> dict[str, tuple[images.Source, Pixels]]:
    """Transparent pictures of every make, and their alpha."""
    four, alpha = rgba(pixels), shape_mask()
    picture = PIL.Image.fromarray(four)
    indexed = PIL.Image.fromarray(four[..., :3]).quantize(4)
    table = bytes([0, 255, 17, 255])
    exact = {"lossless": True, "exact": True}
    return {
        "PNG": (encoded(picture), alpha),
        "WebP": (encoded(picture, "WEBP", **exact), alpha),
        "TIFF": (encoded(picture, "TIFF"), alpha),
        "Pillow": (picture, alpha),
        "LA": (encoded(picture.convert("LA")), alpha),
        "array": (four, alpha),
        "gray array": (four[..., 2:], alpha),
        "16-bit array": (four.astype(np.uint16) * 257, alpha),
        "16-bit RGBA": (sixteen_bit_png(6, four), alpha),
        "16-bit LA": (sixteen_bit_png(4, four[..., 2:]), alpha),
        "palette": (
            encoded(indexed, transparency=table),
            np.frombuffer(table, np.uint8)[np.asarray(indexed)],
        ),
        "GIF": (
            encoded(indexed, "GIF", transparency=1),
            np.uint8(255) * (np.asarray(indexed) != 1),
        ),
    }


def test_every_kind_of_alpha_comes_back_exactly(codec: Codec, pixels: MakePixels) -> None:
    for name, (source, alpha) in sources(pixels).items():
        data = codec.compress(source, alpha="keep", strict=True)
        back = codec.decompress(data)
        is_gray = name in ("LA", "gray array")
        assert back.mode == ("LA" if is_gray else "RGBA"), name
        np.testing.assert_array_equal(np.asarray(back.getchannel("A")), alpha, name)
        image = codec.reconstruct(data)
        assert (image.warnings, image.is_gray) == ((), is_gray)
        np.testing.assert_array_equal(image.alpha, alpha)
        assert back == images.to_pil(image.pixels, is_gray, alpha.astype(np.uint8))


def test_alpha_is_turned_with_the_picture(pixels: MakePixels) -> None:
    picture = PIL.Image.fromarray(rgba(pixels))
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture, exif=exif)
        kept, flat = images.load(data, alpha="keep"), images.load(data)
        assert kept.alpha is not None
        assert kept.alpha.shape == kept.pixels.shape[:2] == flat.pixels.shape[:2]
        np.testing.assert_array_equal(images.flatten(kept).pixels, flat.pixels)


def test_opaque_alpha_makes_no_chunk(codec: Codec, pixels: MakePixels) -> None:
    opaque = rgba(pixels)
    opaque[..., 3] = 255
    data = codec.compress(opaque, alpha="keep")
    assert data == codec.compress(opaque[..., :3])
    assert codec.decompress(data).mode == "RGB"


def test_default_composites_as_before(codec: Codec, pixels: MakePixels) -> None:
    with pytest.warns(ImageWarning, match="composited over white"):
        data = codec.compress(rgba(pixels))
    assert kinds(data) == []
    kept = images.load(rgba(pixels), alpha="keep")
    with pytest.warns(ImageWarning, match="composited over white"):
        assert codec.compress(kept) == data
    with pytest.raises(ImageError, match="expected 'composite' or 'keep'"):
        codec.compress(rgba(pixels), alpha="drop")  # type: ignore[call-overload]


def test_damaged_alpha_is_no_wrong_picture(codec: Codec, pixels: MakePixels) -> None:
    data = codec.compress(pixels(48, 64))
    for chunks in ([Chunk(KIND, b"\7")], [encode_alpha(shape_mask(48, 65))]):
        with pytest.raises(AlphaError):
            codec.decompress(with_chunks(data, *chunks))


# --- Image files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_gray", [False, True])
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "jp2"])
def test_formats_with_alpha_hold_it(
    tmp_path: Path, pixels: MakePixels, suffix: str, is_gray: bool
) -> None:
    path = tmp_path / f"out.{suffix}"
    assert images.save(pixels(48, 64), path, is_gray=is_gray, alpha=shape_mask()) == ()
    np.testing.assert_array_equal(images.load(path, alpha="keep").alpha, shape_mask())


def test_avif_holds_alpha_closely(pixels: MakePixels) -> None:
    stream = io.BytesIO()
    assert images.save(pixels(48, 64), stream, format="avif", alpha=shape_mask()) == ()
    alpha = images.load(stream.getvalue(), alpha="keep").alpha
    assert alpha is not None
    assert np.abs(alpha.astype(int) - shape_mask()).max() < 16


@pytest.mark.parametrize(("suffix", "tolerance"), [("bmp", 0), ("ppm", 0), ("jpg", 60)])
def test_formats_without_alpha_get_white(
    tmp_path: Path, pixels: MakePixels, suffix: str, tolerance: int
) -> None:
    path = tmp_path / f"out.{suffix}"
    four = rgba(pixels)
    (note,) = images.save(four[..., :3], path, alpha=four[..., 3])
    assert "holds no alpha" in note
    difference = images.load(path).pixels.astype(int) - images.load(four).pixels
    assert np.abs(difference).max() <= tolerance


def test_commands_keep_alpha(
    tmp_path: Path,
    pixels: MakePixels,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(model_dir))
    monkeypatch.setattr(catalog, "DEFAULT_MODEL", "tiny")

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    source, packed = tmp_path / "in.png", tmp_path / "in.lc"
    PIL.Image.fromarray(rgba(pixels)).save(source)
    assert run("encode", source, "-o", packed, "--alpha", "keep", "--strict")[::2] == (0, "")
    (chunk,) = bitstream.loads(packed.read_bytes()).chunks
    assert f"chunks    aLPH {len(chunk.body)} bytes\n" in run("info", packed)[1]
    report = json.loads(run("info", packed, "--json")[1])
    assert report["chunks"] == [{"kind": "aLPH", "size_bytes": len(chunk.body)}]
    assert run("decode", packed, "-o", tmp_path / "back.png")[::2] == (0, "")
    back = images.load(tmp_path / "back.png", alpha="keep")
    np.testing.assert_array_equal(back.alpha, shape_mask())
    code, _, error = run("decode", packed, "-o", tmp_path / "back.jpg")
    assert (code, error.count("\n")) == (0, 1)
    assert error.startswith("warning: ")
    assert "composited over white" in error
    assert run("encode", source, "-o", packed, "--alpha", "drop")[0] == 2
    packed.write_bytes(with_chunks(packed.read_bytes(), Chunk(KIND, b"\0\0")))
    code, _, error = run("decode", packed, "-o", tmp_path / "bad.png")
    assert (code, error.count("\n")) == (1, 1)
    assert not (tmp_path / "bad.png").exists()


# --- A photograph --------------------------------------------------------------------------------


def over_checkerboard(colours: Pixels, alpha: Pixels) -> Pixels:
    y, x = np.indices(alpha.shape)
    board = np.where((x // 8 + y // 8) % 2, 230, 40)[..., None]
    weight = alpha[..., None] / 255
    return np.rint(colours * weight + board * (1 - weight)).astype(np.uint8)


def test_cut_out_photograph_has_no_fringe_and_fewer_bytes() -> None:
    path = Path(os.environ.get("LATENT_CODEC_SHARED", "none")) / "data" / "kodak" / "kodim23.png"
    if not path.is_file():
        pytest.skip("no photographs: set LATENT_CODEC_SHARED")
    embedded = Codec.from_pretrained(device="cpu", dtype="fp32")
    alpha = shape_mask(192, 256)
    photograph = images.load(path).pixels[100:292, 200:456]
    cut = np.where(alpha[..., None] == 0, np.uint8(0), photograph)  # editors leave black there
    expected = over_checkerboard(cut, alpha).astype(int)

    kept = embedded.compress(np.dstack([cut, alpha]), alpha="keep")
    image, unfilled = embedded.reconstruct(kept), embedded.reconstruct(embedded.compress(cut))
    np.testing.assert_array_equal(image.alpha, alpha)
    edge = (alpha > 0) & (alpha < 255)
    ours, theirs = (
        np.square(over_checkerboard(one.pixels, alpha) - expected)[edge].mean()
        for one in (image, unfilled)
    )
    assert ours < theirs / 3
    assert len(bitstream.loads(kept).payload) < 0.8 * len(embedded.compress(cut))
