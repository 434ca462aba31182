"""EXIF blocks made by hand: upright, without thumbnails, and one error for whatever is wrong."""

import struct
import time

import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codec.exif import MAX_BYTES, ExifError, clean_exif

ORIENTATION, MAKE, EXIF, GPS, INTEROP = 0x0112, 0x010F, 0x8769, 0x8825, 0xA005
SHORT, LONG, ASCII = 3, 4, 2

Entry = tuple[int, int, int, int]  # tag, type, count, value or offset


def directory(order: str, *entries: Entry, following: int = 0) -> bytes:
    packed = [
        struct.pack(f"{order}HHIHH", *entry, 0)
        if entry[1] == SHORT and entry[2] == 1
        else struct.pack(f"{order}HHII", *entry)
        for entry in entries
    ]
    count = struct.pack(f"{order}H", len(entries))
    return count + b"".join(packed) + struct.pack(f"{order}I", following)


def block(*entries: Entry, order: str = "<", following: int = 0, rest: bytes = b"") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = directory(order, *entries, following=following)
    return mark + struct.pack(f"{order}I", 8) + body + rest


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_orientation_becomes_upright_and_all_else_stays(order: str, prefix: bytes) -> None:
    entries: list[Entry] = [(MAKE, ASCII, 6, 50), (ORIENTATION, SHORT, 1, 6), (EXIF, LONG, 1, 56)]
    rest = b"Maker\0" + directory(order, (0x9000, 7, 4, 0x30323332))
    given_block = block(*entries, order=order, rest=rest)
    assert given_block[50:56] == b"Maker\0"
    entries[1] = (ORIENTATION, SHORT, 1, 1)
    assert clean_exif(prefix + given_block) == block(*entries, order=order, rest=rest)


def test_orientation_of_another_type_becomes_upright_too() -> None:
    cleaned = clean_exif(block((ORIENTATION, LONG, 1, 8)))
    exif = PIL.Image.Exif()
    exif.load(cleaned)
    assert exif[ORIENTATION] == 1


def test_thumbnail_and_padding_are_cut_off() -> None:
    size = len(block((ORIENTATION, SHORT, 1, 1)))
    thumbnail = b"\xff\xd8 the picture before it was cropped \xff\xd9"
    second = directory("<", (0x0201, LONG, 1, size + 30), (0x0202, LONG, 1, len(thumbnail)))
    cleaned = clean_exif(
        block((ORIENTATION, SHORT, 1, 3), following=size, rest=second + thumbnail + bytes(64))
    )
    assert cleaned == block((ORIENTATION, SHORT, 1, 1))


def test_cleaning_twice_changes_nothing_more() -> None:
    rest = b"Maker\0" + directory("<", (0x9000, 7, 4, 0)) + b"more"
    once = clean_exif(block((MAKE, ASCII, 6, 38), (EXIF, LONG, 1, 44), rest=rest))
    assert once.endswith(directory("<", (0x9000, 7, 4, 0)))
    assert clean_exif(once) == once


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begin with b''"),
        (b"Exif\0\0", "begin with b''"),
        (b"II*\0\x08\0\0", "expected the header"),
        (b"garbage that is long enough", "expected the header"),
        (b"II*\0\xff\xff\xff\xff" + bytes(20), "refer to byte 4294967296"),
        (b"II*\0\x04\0\0\0" + bytes(20), "begins at byte 4"),
        (block((MAKE, ASCII, 4000, 8)), "refer to byte 4007"),
        (block((MAKE, 12, 2**32 - 1, 8)), "refer to byte"),
        (block((MAKE, ASCII, 3, 0))[:-4], "refer to byte"),
        (block((EXIF, LONG, 1, 0)), "begins at byte 0"),
        (block((EXIF, LONG, 1, 99)), "refer to byte 100"),
        (
            block((GPS, LONG, 1, 38), (GPS, LONG, 1, 38), rest=directory("<")),
            "0x8825 twice",
        ),
        (
            block((MAKE, ASCII, MAX_BYTES, 26), rest=bytes(MAX_BYTES)),
            f"have {MAX_BYTES + 26} bytes",
        ),
    ],
)
def test_malformed_blocks_are_exif_errors(data: bytes, message: str) -> None:
    with pytest.raises(ExifError, match=message):
        clean_exif(data)


def test_directory_that_leads_to_itself_ends() -> None:
    looped = block((EXIF, LONG, 1, 8), (MAKE, ASCII, 1, 0))
    assert clean_exif(looped) == looped  # as Exif directory it may not lead to Exif once more


def test_many_pointers_take_no_time() -> None:
    entries = [(tag, LONG, 1, 8) for tag in (EXIF, GPS, INTEROP)] * 1800
    start = time.perf_counter()
    with pytest.raises(ExifError, match="twice"):
        clean_exif(block(*entries))
    assert time.perf_counter() - start < 1


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    rest = b"Maker\0" + directory("<", (0x9000, 7, 4, 0), (INTEROP, LONG, 1, 90)) + directory("<")
    data = bytearray(
        block((MAKE, ASCII, 6, 50), (ORIENTATION, SHORT, 1, 6), (EXIF, LONG, 1, 56), rest=rest)
    )
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@example(block((MAKE, ASCII, 6, 50), (ORIENTATION, SHORT, 1, 6))[:30])  # ends inside an entry
@given(damaged() | st.binary(max_size=80).map(lambda tail: b"MM\0*\0\0\0\x08" + tail))
@settings(max_examples=400, deadline=None)
def test_any_block_is_upright_or_an_exif_error(data: bytes) -> None:
    try:
        cleaned = clean_exif(data)
    except ExifError:
        return
    assert len(cleaned) <= len(data)
    order = "<" if cleaned[:1] == b"I" else ">"
    (start,) = struct.unpack_from(f"{order}I", cleaned, 4)
    (count,) = struct.unpack_from(f"{order}H", cleaned, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, *entry = struct.unpack_from(f"{order}HHIH", cleaned, place)
        assert tag != ORIENTATION or entry == [SHORT, 1, 1]
