"""Alpha is kept bit by bit, colours under it leave no fringe, and damage is one typed error."""

import lzma
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import noise, shape_mask

from codec.alpha import KIND, AlphaError, encode_alpha, fill_transparent, read_alpha
from codec.bitstream import Chunk
from codec.images import Pixels

# --- The chunk -----------------------------------------------------------------------------------


def test_masks_come_back_exactly_and_small() -> None:
    gradient = np.tile(np.arange(256, dtype=np.uint8), (128, 1))
    for alpha, most_bytes in (
        (shape_mask(), 700),
        (np.full((300, 200), 128, np.uint8), 80),
        (gradient, 80),
        (gradient.T.copy(), 80),
        (noise(20, 30, 1), 700),
    ):
        chunk = encode_alpha(alpha)
        assert chunk.kind == "aLPH"
        assert len(chunk.body) <= most_bytes
        np.testing.assert_array_equal(read_alpha([chunk], *alpha.shape[::-1]), alpha)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(max_examples=60, deadline=None)
def test_any_plane_comes_back_exactly(alpha: Pixels) -> None:
    height, width = alpha.shape
    np.testing.assert_array_equal(read_alpha([encode_alpha(alpha)], width, height), alpha)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("00000041d0007e4e519d95f7fffe861000", [[0, 255, 128], [0, 255, 7]]),
        ("01000041d0226d4e58c155f7fffe861000", [[0, 255, 128], [0, 255, 7]]),
        ("02000041d00082b3245257ffffe06a8000", [[0, 255, 128], [0, 255, 7]]),
    ],
)
def test_chunks_written_once_decode_for_ever(body: str, expected: list[list[int]]) -> None:
    plane = read_alpha([Chunk(KIND, bytes.fromhex(body))], 3, 2)
    assert plane is not None
    assert plane.tolist() == expected


def test_code_is_that_of_the_lzma_sdk() -> None:
    """An .lzma file is a header (lc, lp and pb in a byte, dictionary, size) before that code."""
    alpha = shape_mask()
    method, code = encode_alpha(alpha).body[0], encode_alpha(alpha).body[1:]
    header = bytes([3]) + struct.pack("<I", 2**22) + b"\xff" * 8
    assert method == 0
    assert lzma.decompress(header + code, lzma.FORMAT_ALONE) == alpha.tobytes()


def coded(plane: bytes, method: int = 0) -> Chunk:
    """A chunk with any bytes in its code."""
    size = max(1, len(plane))
    body = encode_alpha(np.frombuffer(plane or b"\0", np.uint8).reshape(1, size)).body
    return Chunk(KIND, bytes([method]) + body[1:])


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([Chunk(KIND, b"")], "method none"),
        ([Chunk(KIND, b"\0")], "does not hold 6 pixels"),
        ([coded(bytes(6), method=3)], "method 03; .*update"),
        ([coded(bytes(6)), coded(bytes(6))], "2 alpha chunks"),
        ([coded(bytes(5))], "does not hold 6 pixels"),
        ([coded(bytes(7))], "does not hold 6 pixels"),
        ([coded(bytes(2**20))], "does not hold 6 pixels"),
        ([Chunk(KIND, coded(bytes(6)).body + b"\0")], "nothing else"),
        ([Chunk(KIND, coded(bytes(6)).body[:-1])], "does not hold 6 pixels"),
        ([Chunk(KIND, b"\0" + b"\xff" * 30)], "damaged|does not hold"),
    ],
)
def test_malformed_chunks_are_alpha_errors(chunks: list[Chunk], message: str) -> None:
    with pytest.raises(AlphaError, match=message):
        read_alpha(chunks, 3, 2)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_body_is_a_plane_or_an_alpha_error(body: bytes) -> None:
    try:
        plane = read_alpha([Chunk(KIND, body)], 5, 4)
    except AlphaError:
        return
    assert plane is not None
    assert (plane.shape, plane.dtype) == ((4, 5), np.uint8)


def test_bombs_and_short_codes_take_no_more_memory_than_they_give() -> None:
    bomb = coded(bytes(2**23))
    assert len(bomb.body) < 2**12
    for chunk, width, height in ((bomb, 10, 10), (coded(bytes(9)), 2**14, 2**14)):
        tracemalloc.start()
        with pytest.raises(AlphaError):
            read_alpha([chunk], width, height)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**23


# --- Colours under alpha -------------------------------------------------------------------------


def test_visible_pixels_stay_and_hidden_ones_follow_them() -> None:
    alpha = shape_mask()
    pixels = np.full((*alpha.shape, 3), (200, 30, 90), np.uint8)
    pixels[alpha == 0] = noise(*alpha.shape)[alpha == 0]
    before = pixels.copy()
    filled = fill_transparent(pixels, alpha)
    np.testing.assert_array_equal(filled, np.broadcast_to((200, 30, 90), filled.shape))
    np.testing.assert_array_equal(pixels, before)


def test_fill_lies_between_the_colours_around_it() -> None:
    alpha = np.full((33, 41), 255, np.uint8)
    alpha[5:28, 8:35] = 0
    ramp = np.repeat(np.tile(np.arange(41, dtype=np.uint8) * 5, (33, 1))[..., None], 3, axis=2)
    holed = np.where(alpha[..., None] == 0, np.uint8(255), ramp)
    filled = fill_transparent(holed, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], ramp[alpha > 0])
    assert 35 <= filled[16, 8:35].min() < filled[16, 8:35].max() <= 175
    steps = np.diff(filled[16, :, 0].astype(int))
    assert 0 < steps.min() < steps.max() < 10  # the edges towards the hole were of 80 and more


def test_opaque_pictures_are_not_touched_and_empty_ones_are_white() -> None:
    pixels = noise(9, 7)
    assert fill_transparent(pixels, np.full((9, 7), 1, np.uint8)) is pixels
    assert (fill_transparent(pixels, np.zeros((9, 7), np.uint8)) == 255).all()


def test_many_strips_fill_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha, pixels = shape_mask(45, 37), noise(45, 37)
    whole = fill_transparent(pixels, alpha).astype(int)
    monkeypatch.setattr("codec.image_modes._STRIP_PIXELS", 80)
    # Pillow rounds a strip now and then to the other neighbour, at each of a few levels.
    assert np.abs(fill_transparent(pixels, alpha) - whole).max() <= 3
