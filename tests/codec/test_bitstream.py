"""The container against its specification, and against everything that can happen to a file."""

import dataclasses
import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import bitstream
from codec.bitstream import (
    FILE_TABLES_ID,
    BitstreamError,
    ChannelSteps,
    Chunk,
    CodeIndices,
    ColorMode,
    CorruptFileError,
    Grid,
    Header,
    InvalidHeaderError,
    LatentFile,
    NewerVersionError,
    NotLatentFileError,
    OneStep,
    TruncatedFileError,
    UnknownChunkError,
)
from codec.errors import LatentCodecError

GOLDEN_SYMBOLS = (0, 1, -1, 2, -2, 300)
GOLDEN_HEADER = Header(
    latent_id="0123456789abcdef",
    coder_id="fedcba9876543210",
    decoder_id="0011223344556677",
    width=20,
    height=10,
    color_mode=ColorMode.GRAY,
    quantizer=OneStep((1, 2, 3), 16384),
    symbols_crc32=zlib.crc32(struct.pack("<6i", *GOLDEN_SYMBOLS)),
    name="kl-f8d4",
)
GOLDEN_FILE = LatentFile(GOLDEN_HEADER, b"\xc0\xff\xee", (Chunk("noTE", b"hi"),))
# Never to change: files of version 1 are read for good.
GOLDEN_BYTES = bytes.fromhex(
    "894c430a01"
    "484541442e0123456789abcdeffedcba98765432100011223344556677140a01076b6c2d6638643400010203808001"
    "ea8188846a778714"
    "6e6f54450268697078d044"
    "4441544103c0ffee085d898f"
)
# Whole files: the tables and the payload decode to the symbols.
STEPPED_HEADER = dataclasses.replace(
    GOLDEN_HEADER,
    coder_id=FILE_TABLES_ID,
    color_mode=ColorMode.RGB,
    quantizer=ChannelSteps((2, 1, 3), (16384, 20000)),
    name="",
)
STEPPED_FILE = LatentFile(
    STEPPED_HEADER,
    bytes.fromhex("5ce0d62aac137d"),
    tables=bytes.fromhex("0080020003 20fc280a14 1e02280ac801 1c0301280a14"),
)
STEPPED_BYTES = bytes.fromhex(
    "894c430a01"
    "484541442a0123456789abcdef00000000000000000011223344556677140a0000010201038080"
    "01a09c01ea818884f4a99c96"
    "5441424c160080020003 20fc280a14 1e02280ac801 1c0301280a14 cd699d21"
    "44415441075ce0d62aac137d55019788"
)
GOLDEN_INDICES = ((0, 511), (7, 7, 7, 999, 7, 7, 0, 7))
INDEX_HEADER = dataclasses.replace(
    STEPPED_HEADER,
    quantizer=CodeIndices((Grid(512, 1, 2), Grid(1000, 2, 4))),
    symbols_crc32=zlib.crc32(struct.pack("<10i", *(i for grid in GOLDEN_INDICES for i in grid))),
)
INDEX_FILE = LatentFile(
    INDEX_HEADER, bytes.fromhex("007fc0701b04f940d414fe41c0"), tables=b"\x00\x00"
)
INDEX_BYTES = bytes.fromhex(
    "894c430a01"
    "484541442a0123456789abcdef00000000000000000011223344556677140a0000020280040102"
    "e807020474f92d39def302e9"
    "5441424c020000d1f3877e"
    "444154410d007fc0701b04f940d414fe41c0937941ef"
)


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128, written apart from the code under test."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def encode_chunk(kind: bytes, body: bytes, length: bytes | None = None) -> bytes:
    covered = kind + (encode_varint(len(body)) if length is None else length) + body
    return covered + struct.pack("<I", zlib.crc32(covered))


def encode_head_body(
    *,
    width: bytes = b"\x14",
    color_mode: int = 0,
    name: bytes = b"\x00",
    quantizer: int = 0,
    shape: bytes = b"\x01\x02\x03",
    step: bytes = b"\x01",
    end: bytes = b"",
    coder_id: bytes = bytes(range(8, 16)),
) -> bytes:
    ids = bytes(range(8)) + coder_id + bytes(range(16, 24))
    modes = bytes([color_mode]) + name + bytes([quantizer])
    return ids + width + b"\x0a" + modes + shape + step + b"\x00\x00\x00\x00" + end


START = b"\x89LC\n\x01"
HEAD = encode_chunk(b"HEAD", encode_head_body())
DATA = encode_chunk(b"DATA", b"payload")


def find_error(data: bytes) -> BitstreamError | None:
    """What reading says; any other exception passes. A file that is accepted must be canonical."""
    try:
        file = bitstream.loads(data)
    except BitstreamError as error:
        return error
    assert bitstream.dumps(file) == data
    return None


def assert_clear_error_or_none(data: bytes) -> None:
    error = find_error(data)
    if error is not None:
        assert type(error) is not BitstreamError
        assert re.fullmatch(r"the [^\n]*[^\n.]", str(error))
        assert str(error).isprintable()


ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=64).filter(
    lambda name: len(name.encode()) <= 64
)
optional_chunks = st.builds(
    Chunk, st.from_regex(r"[a-z][A-Za-z]{3}", fullmatch=True), st.binary(max_size=300)
)


@st.composite
def quantizers(draw: st.DrawFn, most: int) -> bitstream.Quantizer:
    kind = draw(st.sampled_from([OneStep, ChannelSteps, CodeIndices]))
    if kind is CodeIndices:
        grids = []
        for _ in range(draw(st.integers(1, 8))):
            rows = draw(st.integers(1, min(2**20, most // 8)))
            columns = draw(st.integers(1, min(2**20, most // (8 * rows))))
            grids.append(Grid(draw(st.integers(2, 2**16)), rows, columns))
        return CodeIndices(tuple(grids))
    channels = draw(st.integers(1, 2**10 if kind is OneStep else 40))
    rows = draw(st.integers(1, min(2**20, most // channels)))
    columns = draw(st.integers(1, min(2**20, most // (channels * rows))))
    shape, steps = (channels, rows, columns), st.integers(1, 2**32 - 1)
    if kind is OneStep:
        return OneStep(shape, draw(steps))
    return ChannelSteps(shape, tuple(draw(st.lists(steps, min_size=channels, max_size=channels))))


@st.composite
def headers(draw: st.DrawFn) -> Header:
    width = draw(st.integers(1, 2**20))
    height = draw(st.integers(1, min(2**20, 2**31 // width)))
    return Header(
        latent_id=draw(ids),
        coder_id=draw(ids | st.just(FILE_TABLES_ID)),
        decoder_id=draw(ids),
        width=width,
        height=height,
        color_mode=draw(st.sampled_from(ColorMode)),
        quantizer=draw(quantizers(min(2**30, 16 * max(width * height, 2**16)))),
        symbols_crc32=draw(st.integers(0, 2**32 - 1)),
        name=draw(names),
    )


@st.composite
def files(draw: st.DrawFn) -> LatentFile:
    header = draw(headers())
    tables = draw(st.binary(max_size=300)) if header.coder_id == FILE_TABLES_ID else None
    chunks = draw(st.lists(optional_chunks, max_size=4))
    return LatentFile(header, draw(st.binary(max_size=400)), tuple(chunks), tables)


class TricklingStream(io.BytesIO):
    """Gives at most three bytes at a time, as pipes and sockets may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


class GreedyStream(io.BytesIO):
    """Allocates what it is asked for before it looks what there is, as files do."""

    largest_request = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        self.largest_request = max(self.largest_request, size)
        return super().read(size)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        (GOLDEN_FILE, GOLDEN_BYTES),
        (STEPPED_FILE, STEPPED_BYTES),
        (INDEX_FILE, INDEX_BYTES),
    ],
)
def test_golden_bytes_are_written_and_read(file: LatentFile, data: bytes) -> None:
    assert bitstream.dumps(file) == data
    assert bitstream.loads(data) == file


def test_the_specification_shows_the_golden_files() -> None:
    specification = Path(bitstream.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
    examples = re.findall(r"```hex\n(.*?)```", specification, re.DOTALL)
    shown = [re.findall(r"^((?: *[0-9a-f]{2}\b)+)", text, re.MULTILINE) for text in examples]
    found = [bytes.fromhex("".join(lines)) for lines in shown]
    assert found == [GOLDEN_BYTES, STEPPED_BYTES, INDEX_BYTES]


def test_independently_encoded_file_is_read() -> None:
    file = bitstream.loads(START + HEAD + DATA)
    assert file.payload == b"payload"
    assert file.header.latent_id == "0001020304050607"
    assert (file.header.width, file.header.height) == (20, 10)
    assert file.header.latent_shape == (1, 2, 3)
    assert file.header.step_size == 2**-16


@settings(max_examples=150, deadline=None)
@given(files())
def test_round_trip(file: LatentFile) -> None:
    data = bitstream.dumps(file)
    assert bitstream.loads(data) == file
    assert bitstream.read(TricklingStream(data)) == file
    assert bitstream.read_header(TricklingStream(data)) == file.header


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**18, 2**18 + 1, 2**21])
def test_payload_sizes_where_the_encoding_changes(size: int) -> None:
    file = LatentFile(GOLDEN_HEADER, bytes(size))
    data = bitstream.dumps(file)
    assert bitstream.loads(data) == file
    assert encode_chunk(b"DATA", bytes(size)) == data[-len(encode_chunk(b"DATA", bytes(size))) :]


def test_write_returns_the_size_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "picture.lc"
    with path.open("wb") as stream:
        size = bitstream.write(GOLDEN_FILE, stream)
    assert size == path.stat().st_size == len(GOLDEN_BYTES)
    with path.open("rb") as stream:
        assert bitstream.read(stream) == GOLDEN_FILE


def test_overhead_of_an_ordinary_file_is_small() -> None:
    header = dataclasses.replace(
        GOLDEN_HEADER,
        width=4000,
        height=3000,
        quantizer=OneStep((4, 375, 500), 2**21 - 1),
    )
    payload = bytes(200_000)
    assert len(bitstream.dumps(LatentFile(header, payload))) - len(payload) <= 80


def test_every_truncation_is_found() -> None:
    for size in range(len(GOLDEN_BYTES)):
        with pytest.raises(TruncatedFileError, match=f"^the file ends after {size} bytes, before"):
            bitstream.loads(GOLDEN_BYTES[:size])


def test_every_flipped_bit_is_found_by_structure_or_checksum() -> None:
    expected = (NotLatentFileError, NewerVersionError, TruncatedFileError, CorruptFileError)
    for bit in range(8 * len(GOLDEN_BYTES)):
        damaged = bytearray(GOLDEN_BYTES)
        damaged[bit // 8] ^= 1 << bit % 8
        assert type(find_error(bytes(damaged))) in expected, f"bit {bit}"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, START + noise, START + HEAD + noise):
        assert_clear_error_or_none(data)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(encode_head_body())), st.integers(0, 8), st.binary(max_size=8))
    )
)
def test_damaged_header_under_a_right_checksum_is_refused(
    edits: list[tuple[int, int, bytes]],
) -> None:
    body = encode_head_body(name=b"\x02ab")
    for start, removed, inserted in edits:
        body = body[:start] + inserted + body[start + removed :]
    assert_clear_error_or_none(START + encode_chunk(b"HEAD", body) + DATA)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\tLC\n\x01", b"\x89LC\r\n\x01", bytes(99)]
)
def test_another_kind_of_file(data: bytes) -> None:
    with pytest.raises(NotLatentFileError, match="expected b'\\\\x89LC\\\\n'"):
        bitstream.loads(data)


def test_empty_file() -> None:
    with pytest.raises(TruncatedFileError, match="the file ends after 0 bytes"):
        bitstream.loads(b"")


def test_newer_version_is_told_before_anything_else() -> None:
    with pytest.raises(NewerVersionError, match=r"version 2 .* reads 1: update latent-codec"):
        bitstream.loads(b"\x89LC\n\x02 in a structure of its own")


def test_version_zero_never_was() -> None:
    with pytest.raises(CorruptFileError, match="version 0"):
        bitstream.loads(b"\x89LC\n\x00" + HEAD + DATA)


def test_unknown_optional_chunk_is_kept_and_does_not_disturb() -> None:
    extra = encode_chunk(b"zZZz", b"whatever")
    file = bitstream.loads(START + HEAD + extra + extra + DATA)
    assert file.payload == b"payload"
    assert file.chunks == (Chunk("zZZz", b"whatever"),) * 2


def test_damaged_optional_chunk_is_refused() -> None:
    extra = encode_chunk(b"zZZz", b"whatever").replace(b"what", b"When")
    with pytest.raises(CorruptFileError, match="zZZz chunk does not match its checksum"):
        bitstream.loads(START + HEAD + extra + DATA)


def test_unknown_required_chunk_is_refused() -> None:
    with pytest.raises(UnknownChunkError, match=r"chunk TREE, .* update latent-codec"):
        bitstream.loads(START + HEAD + encode_chunk(b"TREE", b"") + DATA)


@pytest.mark.parametrize(
    ("arrangement", "message"),
    [
        (DATA + HEAD, "first chunk is DATA, not HEAD"),
        (encode_chunk(b"noTE", b"") + HEAD + DATA, "first chunk is noTE, not HEAD"),
        (HEAD + HEAD + DATA, "second HEAD"),
        (HEAD + DATA + DATA, "goes on after byte"),
        (HEAD + DATA + encode_chunk(b"noTE", b""), "goes on after byte"),
        (HEAD + DATA + b"\x00", "goes on after byte"),
        (HEAD + encode_chunk(b"no E", b"") + DATA, "'no E' before byte"),
        (HEAD + encode_chunk(b"n\xf6TE", b"") + DATA, "where a chunk should begin"),
        (HEAD + encode_chunk(b"noTE", b"") * 65 + DATA, "more than 64 optional chunks"),
    ],
)
def test_wrong_arrangement_is_refused(arrangement: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        bitstream.loads(START + arrangement)


OWN_HEAD = encode_chunk(b"HEAD", encode_head_body(coder_id=bytes(8)))
TABLES = encode_chunk(b"TABL", b"tables")


def test_tables_travel_where_the_coder_id_says_so() -> None:
    note = encode_chunk(b"noTE", b"")
    file = bitstream.loads(START + OWN_HEAD + note + TABLES + DATA)
    assert (file.tables, file.payload) == (b"tables", b"payload")
    assert file.chunks == (Chunk("noTE", b""),)


@pytest.mark.parametrize(
    ("arrangement", "message"),
    [
        (HEAD + TABLES + DATA, "TABL chunk beside the coder id 08090a0b0c0d0e0f"),
        (OWN_HEAD + DATA, "no TABL chunk, which its coder id 0000000000000000 asks for"),
        (OWN_HEAD + TABLES + TABLES + DATA, "second TABL chunk"),
        (OWN_HEAD + TABLES + encode_chunk(b"noTE", b"") + DATA, "chunk noTE between TABL and DATA"),
        (OWN_HEAD + DATA + TABLES, "no TABL chunk"),
        (TABLES + OWN_HEAD + DATA, "first chunk is TABL"),
        (
            OWN_HEAD + b"TABL" + encode_varint(2**18 + 1),
            "TABL chunk claims 262145 bytes; expected at most 262144",
        ),
    ],
)
def test_tables_out_of_place_are_refused(arrangement: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        bitstream.loads(START + arrangement)


def test_tables_go_with_the_coder_id_also_when_writing() -> None:
    with pytest.raises(BitstreamError, match="id fedcba9876543210 and its own tables"):
        dataclasses.replace(GOLDEN_FILE, tables=b"")
    with pytest.raises(BitstreamError, match="id 0000000000000000 and no tables"):
        dataclasses.replace(STEPPED_FILE, tables=None)
    with pytest.raises(BitstreamError, match="tables have 262145 bytes"):
        dataclasses.replace(STEPPED_FILE, tables=bytes(2**18 + 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OneStep((1, 2, 3), 2**32), "step is 4294967296"),
        (lambda: OneStep((1025, 1, 1), 1), "latent channel count is 1025"),
        (lambda: ChannelSteps((2, 1, 1), (1,)), "step count is 1; expected 2 to 2"),
        (lambda: ChannelSteps((513, 1, 1), (1,) * 513), "latent channel count is 513"),
        (lambda: CodeIndices(()), "number of codebooks is 0"),
        (lambda: CodeIndices((Grid(2, 1, 1),) * 9), "number of codebooks is 9"),
    ],
)
def test_quantisers_cannot_be_made_from_bad_values(
    build: Callable[[], bitstream.Quantizer], message: str
) -> None:
    with pytest.raises(InvalidHeaderError, match=message):
        build()


def test_largest_header_fits() -> None:
    quantizer = ChannelSteps((512, 1, 2**20), (2**32 - 1,) * 512)
    header = dataclasses.replace(
        GOLDEN_HEADER, width=2**20, height=2**11, quantizer=quantizer, name="x" * 64
    )
    file = LatentFile(header, b"")
    assert bitstream.loads(bitstream.dumps(file)) == file


def test_as_many_optional_chunks_as_allowed() -> None:
    data = START + HEAD + encode_chunk(b"noTE", b"") * 64 + DATA
    assert bitstream.dumps(bitstream.loads(data)) == data


@pytest.mark.parametrize(
    "length",
    [
        b"\x87\x00",
        b"\x87\x80\x00",
        b"\x87\x80\x80\x80\x10",
        b"\x80\x80\x80\x80\x80\x01",
        b"\xff" * 9,
    ],
)
def test_length_in_another_form_is_refused(length: bytes) -> None:
    data = START + HEAD + encode_chunk(b"DATA", b"payload", length)
    with pytest.raises(CorruptFileError, match="DATA chunk's length is not a 32-bit number"):
        bitstream.loads(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": b"\x00"}, "width is 0; expected 1 to 1048576"),
        ({"width": encode_varint(2**20 + 1)}, "width is 1048577"),
        ({"width": b"\x94\x00"}, "width is not a 32-bit number in its shortest form"),
        ({"width": b"\xff\xff\xff\xff\x1f"}, "width is not a 32-bit number"),
        ({"color_mode": 2}, "colour mode 2 .* update latent-codec"),
        ({"quantizer": 3}, "quantiser 3; .* quantisers up to 2: update latent-codec"),
        ({"quantizer": 3, "shape": b"", "step": b""}, "quantiser 3; .* update latent-codec"),
        ({"quantizer": 1, "shape": b"\x06\x02\x03"}, "ends after 37 bytes, before .* its steps"),
        ({"quantizer": 1, "shape": b"\x00\x02\x03"}, "latent channel count is 0"),
        ({"quantizer": 1, "shape": b"\x81\x04\x02\x03"}, "channel count is 513; expected 1 to 512"),
        ({"quantizer": 1, "step": b"\x00"}, "step is 0; expected 1 to 4294967295"),
        ({"quantizer": 1, "step": b"\x81\x00"}, "steps is not a 32-bit number in its shortest"),
        (
            {"quantizer": 2, "shape": b"\x00", "step": b""},
            "number of codebooks is 0; expected 1 to 8",
        ),
        (
            {"quantizer": 2, "shape": b"\x09", "step": b""},
            "number of codebooks is 9; expected 1 to 8",
        ),
        (
            {"quantizer": 2, "shape": b"\x01\x01\x02", "step": b"\x03"},
            "codes is 1; expected 2 to 65",
        ),
        (
            {"quantizer": 2, "shape": b"\x01" + encode_varint(2**16 + 1) + b"\x02"},
            "number of codes is 65537; expected 2 to 65536",
        ),
        ({"quantizer": 2, "shape": b"\x01\x02\x00", "step": b"\x03"}, "index rows is 0"),
        ({"quantizer": 2, "shape": b"\x01\x02\x01", "step": b"\x00"}, "index columns is 0"),
        ({"name": b"\x02\xc3("}, "name is .* expected UTF-8"),
        ({"name": b"\x03\xed\xa0\x80"}, "name is .* expected UTF-8"),
        ({"name": b"\x05\x1b[31m"}, "name is .* without control characters"),
        ({"name": b"\x02\xc2\x9b"}, "name is .* without control characters"),
        ({"name": b"\x41" + b"x" * 65}, "name's size in bytes is 65; expected 0 to 64"),
        ({"name": b"\xff"}, "ends after 37 bytes, before the end of its name"),
        ({"shape": b"\x00\x02\x03"}, "latent channel count is 0"),
        ({"shape": b"\x81\x08\x02\x03"}, "latent channel count is 1025; expected 1 to 1024"),
        ({"shape": b"\x01\x00\x03"}, "latent height is 0"),
        ({"shape": b"\x01\x02\x00"}, "latent width is 0"),
        ({"shape": b"\x01\x01" + encode_varint(2**20 + 1)}, "latent width is 1048577"),
        ({"shape": b"\x02\x01" + encode_varint(2**20)}, "symbol count is 2097152; expected 1 to"),
        ({"step": b"\x00"}, "step is 0; expected 1 to 4294967295"),
        ({"end": b"\x00"}, "has 38 bytes; expected 37"),
    ],
)
def test_bad_header_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    head = encode_chunk(b"HEAD", encode_head_body(**fields))
    with pytest.raises(InvalidHeaderError, match=message):
        bitstream.loads(START + head + DATA)


def test_every_shortened_header_is_refused() -> None:
    body = encode_head_body()
    for size in range(len(body)):
        with pytest.raises(InvalidHeaderError, match=f"the header ends after {size} bytes"):
            bitstream.loads(START + encode_chunk(b"HEAD", body[:size]) + DATA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coder_id": "0123456789ABCDEF"}, "id '0123456789ABCDEF'; expected 16 lowercase"),
        ({"latent_id": "0123"}, "id '0123'"),
        ({"decoder_id": "0123456789abcdef\n"}, "expected 16 lowercase hexadecimal digits"),
        ({"width": 2**17, "height": 2**15}, "pixel count is 4294967296"),
        ({"width": -1, "height": -1}, "width is -1"),
        (
            {"quantizer": OneStep((1024, 64, 17), 1)},
            "symbol count is 1114112; expected 1 to 1048576",
        ),
        (
            {"quantizer": CodeIndices((Grid(2, 2**20, 1), Grid(2, 1, 1)))},
            "symbol count is 1048577; expected 1 to 1048576",
        ),
        ({"symbols_crc32": -1}, "symbol checksum is -1"),
        ({"name": "a\nb"}, "without control characters"),
        ({"name": "\ud800"}, "expected UTF-8"),
        ({"name": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 33}, "size in bytes is 66"),
    ],
)
def test_header_cannot_be_made_from_bad_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidHeaderError, match=message):
        dataclasses.replace(GOLDEN_HEADER, **changes)


def test_largest_values_fit() -> None:
    header = Header(
        latent_id="f" * 16,
        coder_id="f" * 16,
        decoder_id="f" * 16,
        width=2**20,
        height=2**11,
        color_mode=ColorMode.RGB,
        quantizer=OneStep((2**10, 1, 2**20), 2**32 - 1),
        symbols_crc32=2**32 - 1,
        name="x" * 64,
    )
    assert bitstream.loads(bitstream.dumps(LatentFile(header, b""))).header == header


@pytest.mark.parametrize("kind", ["TABL", "HEAD", "DATA", "not", "noTES", "n0TE", "nöTE", ""])
def test_only_optional_chunks_can_be_added(kind: str) -> None:
    with pytest.raises(BitstreamError, match="expected four ASCII letters, the first one lower"):
        LatentFile(GOLDEN_HEADER, b"", (Chunk(kind, b""),))


def test_too_many_chunks_cannot_be_added() -> None:
    with pytest.raises(BitstreamError, match="65 optional chunks; expected at most 64"):
        LatentFile(GOLDEN_HEADER, b"", (Chunk("noTE", b""),) * 65)


def test_file_size_is_bounded_for_writers_and_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitstream, "MAX_FILE_BYTES", len(GOLDEN_BYTES))
    assert bitstream.loads(bitstream.dumps(GOLDEN_FILE)) == GOLDEN_FILE
    monkeypatch.setattr(bitstream, "MAX_FILE_BYTES", len(GOLDEN_BYTES) - 1)
    with pytest.raises(BitstreamError, match="would have 83 bytes; expected at most 82"):
        bitstream.dumps(GOLDEN_FILE)
    with pytest.raises(CorruptFileError, match="DATA chunk claims 3 bytes; expected at most 2"):
        bitstream.loads(GOLDEN_BYTES)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (START + b"HEAD" + encode_varint(2**32 - 1), CorruptFileError),
        (START + b"HEAD" + encode_varint(4097), CorruptFileError),
        (START + HEAD + b"DATA" + encode_varint(2**30), CorruptFileError),
        (START + HEAD + b"DATA" + encode_varint(2**30 - 100), TruncatedFileError),
        (START + HEAD + b"noTE" + encode_varint(2**30 - 100) + b"few", TruncatedFileError),
    ],
)
def test_claimed_sizes_allocate_nothing(data: bytes, error: type[BitstreamError]) -> None:
    stream = GreedyStream(data)
    tracemalloc.start()
    try:
        with pytest.raises(error):
            bitstream.read(stream)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stream.largest_request <= 2**18
    assert peak_bytes < 2**20


def test_claimed_sizes_allocate_nothing_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "claims.lc"
    path.write_bytes(START + HEAD + b"DATA" + encode_varint(2**30 - 100))
    tracemalloc.start()
    try:
        with path.open("rb") as stream, pytest.raises(TruncatedFileError):
            bitstream.read(stream)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


def test_header_is_read_without_the_rest() -> None:
    stream = io.BytesIO(GOLDEN_BYTES)
    assert bitstream.read_header(stream) == GOLDEN_HEADER
    assert GOLDEN_BYTES[stream.tell() :].startswith(b"noTE")


def test_errors_are_what_users_catch() -> None:
    for error in BitstreamError.__subclasses__():
        assert issubclass(error, LatentCodecError)
        assert issubclass(error, ValueError)


def test_import_is_light() -> None:
    program = "import sys, codec.bitstream; print(*({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == ""
