"""The learned context model's coder: exact, the same everywhere, alone or in company."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec.entropy import PayloadError, SymbolsError, TablesError, load_coder
from codec.entropy.context_coder import ContextCoder
from codec.entropy.context_network import log2_fixed
from codec.entropy.context_order import coding_order
from codec.entropy.symbols import SYMBOL_LIMIT
from tests.codec.context_coders import handmade

STEP = 26214
LIMIT = SYMBOL_LIMIT - 1


@pytest.fixture(scope="module")
def coder() -> ContextCoder:
    return handmade(3)


def some_symbols(
    seed: int, shape: tuple[int, ...] = (3, 21, 18), spread: float = 2.0
) -> NDArray[np.int32]:
    random = np.random.default_rng(seed)
    return np.rint(random.normal(size=shape) * spread).astype(np.int32)


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        magnitude=st.sampled_from([0, 1, 3, 30, 1000, LIMIT]),
        step=st.sampled_from([1, 655, STEP, 200_000, 2**32 - 1]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_symbols(
        self, coder: ContextCoder, size: tuple[int, int], magnitude: int, step: int, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        symbols = random.integers(-magnitude, magnitude, (3, *size), np.int32, endpoint=True)
        symbols[random.random(symbols.shape) < 0.3] = 0
        decoded = coder.decode(coder.encode(symbols, step), symbols.shape, step)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)

    @pytest.mark.parametrize("value", [-LIMIT, 0, LIMIT])
    def test_constant_symbols(self, coder: ContextCoder, value: int) -> None:
        symbols = np.full((3, 33, 17), value, np.int32)
        payload = coder.encode(symbols, STEP)
        np.testing.assert_array_equal(coder.decode(payload, symbols.shape, STEP), symbols)

    @pytest.mark.parametrize("channels", [1, 16])
    def test_other_channel_counts(self, channels: int) -> None:
        other = handmade(channels)
        symbols = some_symbols(0, (channels, 12, 10))
        payload = other.encode(symbols, STEP)
        np.testing.assert_array_equal(other.decode(payload, symbols.shape, STEP), symbols)

    def test_estimate_is_close_to_the_bytes(self, coder: ContextCoder) -> None:
        symbols = some_symbols(1, (3, 64, 64))
        found = 8 * len(coder.encode(symbols, STEP))
        assert coder.estimate_bits(symbols, STEP) == pytest.approx(found, rel=0.005, abs=16)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 8), (13, 21), (300, 200)])
    def test_every_position_is_coded_once_after_its_neighbours(
        self, shape: tuple[int, int]
    ) -> None:
        order = coding_order(shape)
        assert sorted(order.positions) == list(range(shape[0] * shape[1]))
        coded = 0
        for block in order.blocks():
            assert block.places.start == coded
            known = block.neighbours[block.neighbours < len(order.positions)]
            assert (known < coded).all()
            assert known.size == block.neighbours.size or min(shape) <= 8
            coded = block.places.stop
        assert coded == len(order.positions)


class TestCompany:
    def test_bytes_do_not_depend_on_the_batch(self, coder: ContextCoder) -> None:
        images = [some_symbols(seed, spread=1 + seed) for seed in range(5)]
        together = coder.encode_batch(images, STEP)
        assert together == [coder.encode(image, STEP) for image in images]
        decoded = coder.decode_batch(together, (3, 21, 18), STEP)
        for image, found in zip(images, decoded, strict=True):
            np.testing.assert_array_equal(found, image)

    def test_shapes_in_a_batch_must_be_alike(self, coder: ContextCoder) -> None:
        with pytest.raises(SymbolsError, match="one shape"):
            coder.encode_batch([some_symbols(0), some_symbols(0, (3, 4, 4))], STEP)

    def test_one_damaged_payload_is_refused(self, coder: ContextCoder) -> None:
        good = coder.encode(some_symbols(0, (3, 64, 64)), STEP)
        with pytest.raises(PayloadError):
            coder.decode_batch([good, b""], (3, 64, 64), STEP)


class TestSame:
    """The same bytes whatever runs beside, around or before."""

    GOLDEN = (
        "00008b1702da96af8b2b749f3a4902b75b8ad956cdf17a3de81095294843acb0a194926283f66c97bb43e42d"
        "bb382cdeaba3ef3fa6ca18b10a1ced983b8a2ed71e6bdc67ffaa5644b24c8db048651a6e9154ac9acbfcaf10"
        "3d159ec4caaad6c7a5371f8465577ec120fca9e250ddc10e30ca9790f746524eca222af90098db326a92cebb"
        "0514c079b8e44210faa91dd3959f4801f47c52d0c7369384a05cdd"
    )
    SCRIPT = """
import hashlib, sys
import numpy as np, torch
from codec.entropy import load_coder
torch.set_num_threads(int(sys.argv[3]))
if sys.argv[4] == "other":
    torch.set_default_dtype(torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.set_flags(False)
coder = load_coder(sys.argv[1])
symbols = np.load(sys.argv[2])
payload = coder.encode(symbols, 26214)
with torch.autocast("cpu", torch.bfloat16):
    assert (coder.decode(payload, symbols.shape, 26214) == symbols).all()
print(hashlib.sha256(payload).hexdigest())
"""

    @pytest.mark.parametrize(("threads", "state"), [("1", "plain"), ("2", "plain"), ("2", "other")])
    def test_another_process_gives_the_same_bytes(
        self, coder: ContextCoder, tmp_path: Path, threads: str, state: str
    ) -> None:
        coder.save(tmp_path / "entropy.safetensors")
        np.save(tmp_path / "symbols.npy", some_symbols(7, (3, 50, 40)))
        names = [str(tmp_path / name) for name in ("entropy.safetensors", "symbols.npy")]
        result = subprocess.run(
            [sys.executable, "-c", self.SCRIPT, *names, threads, state],
            env={**os.environ, "OMP_NUM_THREADS": threads, "ATEN_CPU_CAPABILITY": "default"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        payload = coder.encode(some_symbols(7, (3, 50, 40)), STEP)
        assert result.stdout.split() == [hashlib.sha256(payload).hexdigest()], result.stderr

    def test_tables_chosen_are_equal_under_any_number_of_threads(self, coder: ContextCoder) -> None:
        images = [some_symbols(seed, (3, 70, 50)) for seed in (8, 9)]
        before = torch.get_num_threads()
        chosen: list[list[NDArray[Any]]] = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                chosen.append(
                    [
                        part
                        for choice, _ in coder.choices(images, STEP)
                        for part in (choice.rows, choice.bases, choice.shifts, choice.flips)
                    ]
                )
        finally:
            torch.set_num_threads(before)
        for rows in chosen[1:]:
            for first, other in zip(chosen[0], rows, strict=True):
                np.testing.assert_array_equal(first, other)

    def test_golden_payload(self) -> None:
        index = np.arange(2 * 9 * 11)
        symbols = (index * index // 7 + 3 * index) % 13 - 6 + index // 40
        symbols[::37] *= -41
        payload = handmade(2).encode(symbols.reshape(2, 9, 11).astype(np.int32), STEP)
        assert payload.hex() == self.GOLDEN


class TestGarbage:
    SHAPE = (3, 20, 20)

    @settings(max_examples=60, deadline=None)
    @given(payload=st.binary(max_size=3000), step=st.sampled_from([1, STEP, 2**32 - 1]))
    def test_any_bytes(self, coder: ContextCoder, payload: bytes, step: int) -> None:
        try:
            symbols = coder.decode(payload, self.SHAPE, step)
        except PayloadError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert symbols.shape == self.SHAPE
            assert np.abs(symbols).max() <= LIMIT

    def test_few_bytes_cannot_claim_a_huge_image(self, coder: ContextCoder) -> None:
        tracemalloc.start()
        with pytest.raises(PayloadError, match="4 bytes was found for 805306368 symbols"):
            coder.decode(b"abcd", (3, 1 << 14, 1 << 14), STEP)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    def test_refusals_are_those_of_all_coders(self, coder: ContextCoder) -> None:
        with pytest.raises(SymbolsError, match="larger step"):
            coder.encode(np.full((3, 4, 4), LIMIT + 1, np.int32), STEP)
        with pytest.raises(SymbolsError, match=r"\(3, height, width\)"):
            coder.encode(np.zeros((4, 4, 4), np.int32), STEP)
        with pytest.raises(SymbolsError, match="step"):
            coder.encode(np.zeros((3, 4, 4), np.int32), 0)


class TestFile:
    def changed(self, folder: Path, **tensors: NDArray[Any]) -> Path:
        path = folder / "entropy.safetensors"
        handmade(2).save(path)
        content = {**safetensors.numpy.load_file(path), **tensors}
        safetensors.numpy.save_file(content, path, {"latent_codec_entropy": "context-1"})
        return path

    def test_save_and_load_are_identical(self, coder: ContextCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        loaded = load_coder(tmp_path / "a")
        loaded.save(tmp_path / "b")
        assert isinstance(loaded, ContextCoder)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert loaded.encode(some_symbols(3), STEP) == coder.encode(some_symbols(3), STEP)

    def test_only_integers_are_stored(self, coder: ContextCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        kinds = {t.dtype.kind for t in safetensors.numpy.load_file(tmp_path / "a").values()}
        assert kinds <= {"i", "u"}

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("frequencies", np.full((116, 51), 9, np.uint16), "sum"),
            ("edge.first", np.zeros((6, 3), np.int16), "ask"),
            ("edge.first", np.zeros((6, 25), np.int64), "integer types"),
            ("root.second", np.zeros((5, 6), np.int16), "ask"),
            ("deviations", np.zeros(2, np.int32), "positive"),
            ("deviations", np.ones((2, 2), np.int32), "positive"),
            ("edge.second", np.full((6, 6), 32767, np.int16), None),
            ("edge.second_bias", np.full((6, 1), 2**31 - 1, np.int32), "2\\*\\*31"),
            ("edge.linear", np.full((2, 25), 32767, np.int16), "2\\*\\*31"),
        ],
    )
    def test_malformed_tensors(
        self, tmp_path: Path, name: str, tensor: NDArray[Any], message: str | None
    ) -> None:
        path = self.changed(tmp_path, **{name: tensor})
        if message is None:  # large, but no sum can leave 32 bits
            symbols = some_symbols(2, (2, 9, 9))
            coder = load_coder(path)
            found = coder.decode(coder.encode(symbols, STEP), (2, 9, 9), STEP)
            np.testing.assert_array_equal(found, symbols)
            return
        with pytest.raises(TablesError, match=message):
            load_coder(path)

    def test_unknown_version(self, tmp_path: Path) -> None:
        safetensors.numpy.save_file(
            {"a": np.zeros(1)}, tmp_path / "a", {"latent_codec_entropy": "context-2"}
        )
        with pytest.raises(TablesError, match="context-2"):
            load_coder(tmp_path / "a")


@pytest.mark.parametrize("value", [1, 2, 3, 65535, 65536, 65537, 10**9, 2**36])
@pytest.mark.parametrize("bits", [5, 7])
def test_integer_logarithm(value: int, bits: int) -> None:
    found = log2_fixed(value, bits)
    exact = np.log2(np.float64(value) / 65536) * 2**bits
    assert found <= exact + 1e-9
    assert exact < found + 1 + 1e-9
