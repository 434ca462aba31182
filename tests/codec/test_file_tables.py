"""Tables that travel in files: exact, small, bounded, and refused where they are malformed."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec import quantizer
from codec.entropy import PayloadError
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.file_tables import ClassWeights, FileTables
from codec.entropy.fit import fit
from codec.entropy.fit_file_tables import fit_file_tables
from codec.entropy.index_tables import decode_indices, encode_indices
from codec.entropy.standard_tables import standard_tables
from codec.entropy.tables import TablesError
from codec.wire import InvalidTablesError
from eval.latents.entropy import order0_bits

Symbols = NDArray[np.int32]


def smooth_symbols(channels: int, rows: int, columns: int, seed: int = 0) -> Symbols:
    """Symbols with neighbours alike and calm and lively places, as latents have."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(channels, rows + 8, columns + 8))
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 5.0)
    for axis in (1, 2):
        noise = np.apply_along_axis(np.convolve, axis, noise, kernel, "valid")
    lively = np.linspace(0.3, 2, rows)[:, None]
    detail = random.normal(size=(channels, rows, columns)) * lively
    return np.rint(noise * 1.5 + detail).astype(np.int32)


def test_standard_tables_never_change() -> None:
    tables = standard_tables()
    content = tables.thresholds.astype("<i4").tobytes() + tables.frequencies.astype("<i4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "77e08d2031886620"
    scales = np.sqrt(np.array([7, *tables.thresholds]) * np.array([*tables.thresholds, 1024])) / 256
    for row in range(0, len(tables.frequencies), 7):
        edges = np.arange(-24, 26) - 0.5 - (2 * (row % 4) + 1) / 16
        below = 1 / (1 + 2.0 ** np.minimum(-2 * edges / scales[row // 4], 99))
        masses = np.diff(below, prepend=0, append=1)
        assert np.abs(tables.frequencies[row] / 2**16 - masses).max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.3, 5.0, 3e3, 1e7]),
    st.integers(0, 99),
)
def test_symbols_come_back(shape: tuple[int, int, int], spread: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    symbols = np.clip(random.laplace(size=shape) * spread, 1 - 2**20, 2**20 - 1).astype(np.int32)
    tables = fit_file_tables(symbols)
    body, payload = tables.to_bytes(), tables.encode(symbols)
    read = FileTables.from_bytes(body, shape[0])
    assert read == tables
    assert np.array_equal(read.decode(payload, shape), symbols)
    assert 8 * len(payload) <= tables.estimate_bits(symbols) * 1.01 + 16 + symbols.size / 128


def test_files_with_tables_take_less_than_order_0_entropy() -> None:
    symbols = smooth_symbols(4, 64, 64)
    tables = fit_file_tables(symbols)
    size_bytes = len(tables.to_bytes()) + len(tables.encode(symbols))
    assert len(tables.to_bytes()) <= 100
    assert 8 * size_bytes < 0.9 * order0_bits(symbols)


def test_channels_get_weights_of_their_own_where_that_pays() -> None:
    alike = smooth_symbols(3, 48, 48)
    assert len(fit_file_tables(alike).sets) == 1
    random = np.random.default_rng(1)
    noise = random.normal(size=alike.shape) * 6
    noise[0] = alike[0]
    assert len(fit_file_tables(np.rint(noise).astype(np.int32)).sets) == 3


def test_many_channels_and_small_grids_are_quick_and_small() -> None:
    symbols = np.rint(np.random.default_rng(0).normal(size=(128, 4, 4)) * 4).astype(np.int32)
    tables = fit_file_tables(symbols)
    assert len(tables.to_bytes()) < 200
    assert np.array_equal(tables.decode(tables.encode(symbols), symbols.shape), symbols)


def test_extreme_tables_code_extreme_symbols() -> None:
    weights = (
        ClassWeights((-128, 127), 255, 255, 2**28 - 1),
        ClassWeights((127, -128), 0, 0, 0),
        ClassWeights((-128, 127, -128), 255, 0, 0),
    )
    tables = FileTables((2**20 - 1, 1 - 2**20), 2**28 - 1, (weights,))
    symbols = np.full((2, 21, 20), 2**20 - 1, np.int32)
    symbols[:, ::2] *= -1
    assert FileTables.from_bytes(tables.to_bytes(), 2) == tables
    assert np.array_equal(tables.decode(tables.encode(symbols), symbols.shape), symbols)


BODY = fit_file_tables(smooth_symbols(2, 16, 16)).to_bytes()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x02" + BODY[1:], "of kind 2; this release knows 0 and 1"),
        (BODY + b"\x00", "expected"),
        (BODY[:-1], "TABL chunk ends after"),
        (b"", "TABL chunk ends after 0 bytes"),
        (b"\x00\x80\x80\x80\x80\x01" + BODY[3:], "number 268435456; expected at most 268435455"),
        (b"\x00\x01\x80\x80\x80\x01" + bytes(20), "number 1048576; expected at most 1048575"),
        (b"\x00\x81\x00" + bytes(20), "not a 32-bit number in its shortest form"),
    ],
)
def test_malformed_tables_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidTablesError, match=message):
        FileTables.from_bytes(body, 2)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=200))
def test_damaged_latents_raise_or_give_symbols_in_range(body: bytes, payload: bytes) -> None:
    for data in (body, BODY):
        try:
            symbols = FileTables.from_bytes(data, 2).decode(payload, (2, 9, 11))
        except (InvalidTablesError, PayloadError):
            continue
        assert np.abs(symbols).max() < 2**20


# ---- indices


@pytest.mark.parametrize(
    ("size", "count", "skew"),
    [(2, 1, 0.0), (2, 500, 3.0), (700, 4000, 0.02), (2**16, 600, 0.0), (2**16, 600, 0.01)],
)
def test_indices_come_back(size: int, count: int, skew: float) -> None:
    random = np.random.default_rng(3)
    odds = np.exp(-skew * np.arange(size))
    grid = random.choice(size, (1, count), p=odds / odds.sum()).astype(np.int32)
    tables, payload = encode_indices((grid, grid[:, :1]), (size, size))
    found = decode_indices(tables, payload, (size, size), ((1, count), (1, 1)))
    assert np.array_equal(found[0], grid)
    assert np.array_equal(found[1], grid[:, :1])
    plain = count * (size - 1).bit_length() / 8
    assert len(tables) + len(payload) <= plain + 7


def test_collapsed_codebooks_take_few_bytes() -> None:
    grid = np.random.default_rng(0).integers(0, 20, (64, 64)).astype(np.int32) * 700
    tables, payload = encode_indices((grid,), (16384,))
    assert len(tables) + len(payload) < 0.34 * 4096 * 14 / 8
    assert encode_indices((grid * 0,), (16384,))[1] == bytes(4)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (b"\x02", "of kind 2"),
        (b"\x00\x00", "have 2 bytes; expected 1"),
        (b"\x01", "ends after 1 bytes"),
        (b"\x01\x0a", "ends after 2 bytes"),
        (b"\x01\x0a\x01", "name the codes 10 to 11 of 10"),
        (b"\x01\x00\x00", "name the codes 0 to 0 of 10"),
        (b"\x01\x00\x0b", "name the codes 0 to 11 of 10"),
        (b"\x01\x00\x01\x00", "empty run"),
        (b"\x01\x00\x01\x0a\x01", "name the codes 11 to 12"),
        (b"\x01\x00\x01\x09\x10", "do not end with zeros"),
        (b"\x01\x00\x0a\x00\x00", "ends after 5 bytes"),
    ],
)
def test_malformed_index_tables_are_refused(tables: bytes, message: str) -> None:
    with pytest.raises(InvalidTablesError, match=message):
        decode_indices(tables, bytes(20), (10,), ((3, 3),))


def test_too_many_counted_codes_are_refused() -> None:
    with pytest.raises(InvalidTablesError, match="count 16385 codes; expected at most 16384"):
        decode_indices(b"\x01\x00\x81\x80\x01" + bytes(8193), b"", (16385,), ((1, 1),))


def test_indices_beyond_the_codebook_are_refused() -> None:
    _, payload = encode_indices((np.array([[3, 11]], np.int32),), (16,))
    with pytest.raises(PayloadError, match="names code 11 of 10"):
        decode_indices(b"\x00", payload, (10,), ((1, 2),))
    with pytest.raises(PayloadError, match="take at least 1"):
        decode_indices(b"\x00", b"", (10,), ((1, 1024),))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=30), st.binary(max_size=60))
def test_damaged_indices_raise_or_are_in_range(tables: bytes, payload: bytes) -> None:
    try:
        (grid,) = decode_indices(tables, payload, (10,), ((5, 7),))
    except (InvalidTablesError, PayloadError):
        return
    assert grid.min() >= 0
    assert grid.max() < 10


# ---- tables of a model whose channels have steps of their own


@pytest.fixture(scope="module")
def channel_coder() -> ChannelCoder:
    latents = [smooth_symbols(3, 32, 32, seed) / np.float32(4) for seed in range(3)]
    return ChannelCoder(fit(latents, [8000, 16000, 64000]), (70_000, 30_000, 200_000))


def test_channel_coder_is_stored_whole(channel_coder: ChannelCoder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "entropy.safetensors"
    channel_coder.save(path)
    loaded = ChannelCoder.load(path)
    assert loaded.deviations == channel_coder.deviations
    symbols, steps = smooth_symbols(3, 20, 20, 9), (17_000, 7_300, 48_600)
    payload = channel_coder.encode(symbols, steps)
    assert loaded.encode(symbols, steps) == payload
    assert np.array_equal(loaded.decode(payload, symbols.shape, steps), symbols)
    assert 8 * len(payload) == pytest.approx(loaded.estimate_bits(symbols, steps), rel=0.01)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_common_step_follows_from_the_steps_alone(channel_coder: ChannelCoder) -> None:
    for step in (1, 100, 15_925, 400_000, 2**32 - 1):
        steps = quantizer.channel_steps(step, channel_coder.deviations)
        assert abs(channel_coder.common_step(steps) - step) <= 1 or step == 2**32 - 1
    assert channel_coder.common_step((1, 1, 1)) == 1
    assert channel_coder.common_step((1, 2**32 - 1, 1)) == 2**32 - 1


@pytest.mark.parametrize(
    "change",
    [lambda d: d[:2], lambda d: (0, *d[1:]), lambda d: (2**32, *d[1:]), lambda d: (*d, 5)],
)
def test_deviations_that_do_not_fit_are_refused(
    channel_coder: ChannelCoder,
    tmp_path,  # type: ignore[no-untyped-def]
    change: Callable[[tuple[int, ...]], tuple[int, ...]],
) -> None:
    path = tmp_path / "entropy.safetensors"
    ChannelCoder(channel_coder.coder, change(channel_coder.deviations)).save(path)
    with pytest.raises(TablesError, match="3 channels ask for as many"):
        ChannelCoder.load(path)
