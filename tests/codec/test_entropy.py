"""The symbol coder: exact, the same everywhere, smaller than order 0, and calm before garbage."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import constriction
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import codec.entropy.coder as coder_module
from codec.entropy import PayloadError, SymbolCoder, SymbolsError, TablesError
from codec.entropy.context import Predictor, sizes
from codec.entropy.fit import FitError, fit
from codec.entropy.lattice import PASSES
from codec.entropy.payload import PayloadReader, PayloadWriter, probabilities
from codec.entropy.tables import ALPHABET, NUM_FRACTIONS, Tables

STEP = 26214  # 0.4
LIMIT = 2**20 - 1


def smooth_latents(seed: int, shape: tuple[int, int, int] = (3, 32, 32)) -> NDArray[np.float32]:
    """Latents with neighbours alike, channels related and rough spots, as encoders make them."""
    random = np.random.default_rng(seed)
    num_channels, height, width = shape
    noise = random.normal(size=(num_channels, height + 4, width + 4))
    noise *= 0.3 + random.random((1, height + 4, width + 4)) ** 4 * 3
    for axis in (1, 2):
        size = noise.shape[axis] - 4
        noise = sum(np.take(noise, range(i, i + size), axis) for i in range(5)) / np.sqrt(5)
    noise[1:] += 0.5 * noise[:1]
    return noise.astype(np.float32)


def quantise(latents: NDArray[np.float32], step: int) -> NDArray[np.int32]:
    return np.rint(latents * (65536 / step)).astype(np.int32)


def order_0_bytes(symbols: NDArray[np.int32]) -> float:
    """Per-image entropy of each channel's own histogram, the histogram given for free."""
    bits = 0.0
    for channel in symbols:
        counts = np.unique(channel, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def handmade(num_channels: int = 2) -> SymbolCoder:
    """A coder of plain numbers that no fit can change: the ground of the golden payload."""
    predictors = []
    for index, (num_mean, num_scale) in enumerate(sizes(num_channels)):
        mean = np.arange(num_mean, dtype=np.int64) * 97 % 1500 - 300
        scale = np.arange(num_scale, dtype=np.int64) * 31 % 400
        predictors.append(Predictor(mean, 1000 * index - 7000, scale, 1 << 18, 1 << 17))
    thresholds = np.array([16, 64, 256, 512])
    distance = np.abs(np.arange(ALPHABET) - ALPHABET // 2)
    rows = []
    for sharpness in np.repeat([6, 4, 3, 2, 1], NUM_FRACTIONS).tolist():
        row = 1 + (8192 >> np.minimum(distance * sharpness // 2, 20))
        row[ALPHABET // 2] += 65536 - row.sum()
        rows.append(row)
    num = len(PASSES)
    return SymbolCoder(
        tuple(tuple(predictors[num * c : num * (c + 1)]) for c in range(num_channels)),
        Tables(thresholds, np.array(rows, np.int32)),
    )


def golden_symbols() -> NDArray[np.int32]:
    """Fixed symbols, small ones for the most part, with a few that escape."""
    index = np.arange(2 * 9 * 11)
    symbols = (index * index // 7 + 3 * index) % 13 - 6 + index // 40
    symbols[::37] *= -41
    return symbols.reshape(2, 9, 11).astype(np.int32)


@pytest.fixture(scope="module")
def coder() -> SymbolCoder:
    return fit([smooth_latents(seed) for seed in range(12)], [3277, 13107, 26214, 65536])


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        magnitude=st.sampled_from([0, 1, 3, 30, 1000, LIMIT]),
        step=st.sampled_from([1, 655, STEP, 200_000, 2**32 - 1]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_symbols(
        self, coder: SymbolCoder, size: tuple[int, int], magnitude: int, step: int, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        symbols = random.integers(-magnitude, magnitude, (3, *size), np.int32, endpoint=True)
        symbols[random.random(symbols.shape) < 0.3] = 0
        decoded = coder.decode(coder.encode(symbols, step), symbols.shape, step)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)

    @pytest.mark.parametrize("value", [-LIMIT, 0, LIMIT])
    def test_constant_symbols(self, coder: SymbolCoder, value: int) -> None:
        symbols = np.full((3, 33, 17), value, np.int32)
        payload = coder.encode(symbols, STEP)
        np.testing.assert_array_equal(coder.decode(payload, symbols.shape, STEP), symbols)

    def test_blocks_bound_the_memory_of_large_images(
        self, coder: SymbolCoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        symbols = quantise(smooth_latents(70, (3, 40, 30)), 655)
        monkeypatch.setattr(coder_module, "BLOCK", 50)
        payload = coder.encode(symbols, 655)
        np.testing.assert_array_equal(coder.decode(payload, symbols.shape, 655), symbols)

    @pytest.mark.parametrize("num_channels", [1, 16])
    def test_other_channel_counts(self, num_channels: int) -> None:
        latents = [smooth_latents(seed, (num_channels, 12, 10)) for seed in range(3)]
        symbols = quantise(latents[0], STEP)
        fitted = fit(latents, [STEP])
        payload = fitted.encode(symbols, STEP)
        np.testing.assert_array_equal(fitted.decode(payload, symbols.shape, STEP), symbols)


class TestSize:
    @pytest.mark.parametrize("step", [6554, 13107, 26214, 52429])
    def test_beats_the_order_0_entropy_of_the_same_symbols(
        self, coder: SymbolCoder, step: int
    ) -> None:
        images = [quantise(smooth_latents(seed), step) for seed in range(100, 108)]
        found = sum(len(coder.encode(symbols, step)) for symbols in images)
        assert found < 0.88 * sum(order_0_bytes(symbols) for symbols in images)

    @pytest.mark.parametrize("step", [655, 6554, 26214, 131072])
    def test_estimate_is_close_to_the_bytes(self, coder: SymbolCoder, step: int) -> None:
        symbols = quantise(smooth_latents(200, (3, 64, 64)), step)
        found = 8 * len(coder.encode(symbols, step))
        assert coder.estimate_bits(symbols, step) == pytest.approx(found, rel=0.005, abs=16)


class TestGolden:
    WORDS = (
        "00003dffc3dff1c923b7fad62396d0b580aa8120c8da616d84fd530f0032a734e4e1700b4f63a6691e36cfb0"
        "f925c7a563a3a550271f46fd2686f69dbfe597167a9927713fcd1a6fd5bda594ae630dbe271eda6e2d1f85a3"
        "7f89a9c8650121d8635bbdef56931efb0d13a00492ad6c65e8e84528eb6a1cf68dd5565286419a805341ece7"
        "44b919ac7e3ca40b292e7e69e8347b4c9018"
    )

    def test_payload_of_fixed_symbols_and_tables(self) -> None:
        payload = handmade().encode(golden_symbols(), STEP)
        assert payload.hex() == self.WORDS

    def test_decodes_to_the_fixed_symbols(self) -> None:
        decoded = handmade().decode(bytes.fromhex(self.WORDS), (2, 9, 11), STEP)
        np.testing.assert_array_equal(decoded, golden_symbols())


class TestPayload:
    """The range coder's words, cut to the fewest bytes."""

    TABLES = probabilities(handmade().tables.frequencies)

    @settings(max_examples=100, deadline=None)
    @given(count=st.integers(0, 60), seed=st.integers(0, 2**32 - 1))
    def test_shortest_payload_decodes(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        rows = random.integers(0, len(self.TABLES), count)
        indices = random.integers(0, ALPHABET, count)
        num_bits = random.integers(1, 24, count)
        values = random.integers(0, 1 << num_bits)
        writer = PayloadWriter(self.TABLES)
        writer.write_symbols(rows, indices)
        writer.write_bits(num_bits, values)
        payload = writer.finish(count)
        assert not payload.endswith(b"\0")
        reader = PayloadReader(self.TABLES, payload, count)
        np.testing.assert_array_equal(reader.read_symbols(rows), indices)
        np.testing.assert_array_equal(reader.read_bits(num_bits), values)

    def test_close_to_the_ideal_and_never_longer_than_the_coders_own_words(self) -> None:
        encoder_family = constriction.stream.model.Categorical(perfect=False)
        saved = 0
        for count in range(1, 40):
            rows, indices = np.arange(count) % len(self.TABLES), np.arange(count) * 7 % ALPHABET
            writer = PayloadWriter(self.TABLES)
            writer.write_symbols(rows, indices)
            encoder = constriction.stream.queue.RangeEncoder()
            encoder.encode(indices.astype(np.int32), encoder_family, self.TABLES[rows])
            payload = writer.finish(count)
            saved += 4 * encoder.num_words() - len(payload)
            assert len(payload) <= 4 * encoder.num_words()
            ideal = -np.log2(self.TABLES[rows, indices]).sum() / 8
            assert len(payload) < ideal + 1.1
        assert saved > 39

    def test_frequencies_are_handed_over_exactly(self) -> None:
        assert (handmade().tables.frequencies == self.TABLES * 65536).all()
        assert (self.TABLES.sum(axis=1) == 1).all()


class TestDeterminism:
    SCRIPT = """
import hashlib, sys
import numpy as np
from codec.entropy import SymbolCoder
coder = SymbolCoder.load(sys.argv[1])
symbols = np.load(sys.argv[2])
payload = coder.encode(symbols, 26214)
assert (coder.decode(payload, symbols.shape, 26214) == symbols).all()
coder.save(sys.argv[3])
print(hashlib.sha256(payload).hexdigest(), "torch" in sys.modules)
"""

    @pytest.mark.parametrize("threads", ["1", "2"])
    def test_another_process_gives_the_same_bytes(
        self, coder: SymbolCoder, tmp_path: Path, threads: str
    ) -> None:
        coder.save(tmp_path / "entropy.safetensors")
        symbols = quantise(smooth_latents(300, (3, 48, 40)), STEP)
        np.save(tmp_path / "symbols.npy", symbols)
        names = ("entropy.safetensors", "symbols.npy", "again.safetensors")
        result = subprocess.run(
            [sys.executable, "-c", self.SCRIPT, *(str(tmp_path / name) for name in names)],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        digest = hashlib.sha256(coder.encode(symbols, STEP)).hexdigest()
        assert result.stdout.split() == [digest, "False"], result.stderr
        stored = (tmp_path / "entropy.safetensors").read_bytes()
        assert (tmp_path / "again.safetensors").read_bytes() == stored

    def test_same_latents_give_the_same_coder(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            fit([smooth_latents(seed) for seed in range(3)], [STEP]).save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class TestGarbage:
    SHAPE = (3, 20, 20)

    def decode_or_refuse(self, coder: SymbolCoder, payload: bytes, step: int = STEP) -> None:
        try:
            symbols = coder.decode(payload, self.SHAPE, step)
        except PayloadError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert symbols.shape == self.SHAPE
            assert np.abs(symbols).max() <= LIMIT

    @settings(max_examples=100, deadline=None)
    @given(payload=st.binary(max_size=3000), step=st.sampled_from([1, STEP, 2**32 - 1]))
    def test_any_bytes(self, coder: SymbolCoder, payload: bytes, step: int) -> None:
        self.decode_or_refuse(coder, payload, step)

    @pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0xFF])
    @pytest.mark.parametrize("size", [0, 3, 50, 5000])
    def test_repeated_bytes(self, coder: SymbolCoder, byte: int, size: int) -> None:
        self.decode_or_refuse(coder, bytes([byte]) * size)

    def test_truncated_and_flipped(self, coder: SymbolCoder) -> None:
        payload = coder.encode(quantise(smooth_latents(400, self.SHAPE), 6554), 6554)
        for size in range(0, len(payload), 29):
            self.decode_or_refuse(coder, payload[:size], 6554)
            flipped = bytearray(payload)
            flipped[size] ^= 1 << size % 8
            self.decode_or_refuse(coder, bytes(flipped), 6554)

    def test_few_bytes_cannot_claim_a_huge_image(self, coder: SymbolCoder) -> None:
        tracemalloc.start()
        with pytest.raises(PayloadError, match="4 bytes was found for 805306368 symbols"):
            coder.decode(b"abcd", (3, 1 << 14, 1 << 14), STEP)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


class TestRefusals:
    @pytest.mark.parametrize("value", [LIMIT + 1, -LIMIT - 1, 2**31 - 1, -(2**31)])
    def test_symbols_out_of_range(self, coder: SymbolCoder, value: int) -> None:
        symbols = np.zeros((3, 4, 4), np.int32)
        symbols[1, 2, 3] = value
        with pytest.raises(SymbolsError, match="larger step"):
            coder.encode(symbols, STEP)

    def test_wrong_type(self, coder: SymbolCoder) -> None:
        with pytest.raises(SymbolsError, match="float32 were found where int32"):
            coder.encode(np.zeros((3, 4, 4), np.float32), STEP)

    @pytest.mark.parametrize("shape", [(4, 4, 4), (3, 4), (3, 0, 4)])
    def test_wrong_shape(self, coder: SymbolCoder, shape: tuple[int, ...]) -> None:
        with pytest.raises(SymbolsError, match=r"\(3, height, width\)"):
            coder.encode(np.zeros(shape, np.int32), STEP)
        with pytest.raises(SymbolsError, match=r"\(3, height, width\)"):
            coder.decode(b"", shape, STEP)

    @pytest.mark.parametrize("step", [0, -1, 2**32])
    def test_impossible_step(self, coder: SymbolCoder, step: int) -> None:
        with pytest.raises(SymbolsError, match="step"):
            coder.encode(np.zeros((3, 4, 4), np.int32), step)


class TestFile:
    def changed(self, coder: SymbolCoder, folder: Path, **tensors: NDArray[np.integer]) -> Path:
        """Save a coder and replace some of the tensors."""
        path = folder / "entropy.safetensors"
        coder.save(path)
        content = {**safetensors.numpy.load_file(path), **tensors}
        safetensors.numpy.save_file(content, path, {"latent_codec_entropy": "1"})
        return path

    def test_save_and_load_are_identical(self, coder: SymbolCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        loaded = SymbolCoder.load(tmp_path / "a")
        loaded.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        symbols = quantise(smooth_latents(500), STEP)
        assert loaded.encode(symbols, STEP) == coder.encode(symbols, STEP)

    def test_only_integers_are_stored(self, coder: SymbolCoder, tmp_path: Path) -> None:
        coder.save(tmp_path / "a")
        kinds = {t.dtype.kind for t in safetensors.numpy.load_file(tmp_path / "a").values()}
        assert kinds <= {"i", "u"}

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(TablesError, match="cannot be read"):
            SymbolCoder.load(tmp_path / "none")

    def test_no_safetensors_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"\xff" * 100)
        with pytest.raises(TablesError, match="no safetensors file"):
            SymbolCoder.load(tmp_path / "a")

    def test_other_version(self, tmp_path: Path) -> None:
        safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "a")
        with pytest.raises(TablesError, match="version None"):
            SymbolCoder.load(tmp_path / "a")

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("frequencies", np.full((20, ALPHABET), 9, np.uint16), "sum"),
            ("frequencies", np.full((4, 7), 9, np.uint16), "shape"),
            ("frequencies", np.zeros((20, ALPHABET), np.int64), "integer types"),
            ("thresholds", np.array([16, 64, 64, 512], np.int32), "ascend"),
            ("mean_weights", np.zeros(3, np.int32), "ask for"),
            ("constants", np.zeros((9999, 13, 3), np.int32), "9999 channels"),
            ("constants", np.zeros(2, np.int32), "ask for"),
        ],
    )
    def test_malformed_tensors(
        self, tmp_path: Path, name: str, tensor: NDArray[np.integer], message: str
    ) -> None:
        with pytest.raises(TablesError, match=message):
            SymbolCoder.load(self.changed(handmade(), tmp_path, **{name: tensor}))

    def test_weights_that_could_overflow(self, tmp_path: Path) -> None:
        num_mean, _ = np.array(list(sizes(2))).sum(axis=0)
        huge = np.full(num_mean, -(2**31), np.int32)
        with pytest.raises(TablesError, match="overflow"):
            SymbolCoder.load(self.changed(handmade(), tmp_path, mean_weights=huge))


class TestFit:
    @pytest.mark.parametrize("shape", [(4, 1, 1), (1, 1, 5), (2, 3, 2)])
    def test_tiny_latents(self, shape: tuple[int, int, int]) -> None:
        latents = np.linspace(-2, 2, num=int(np.prod(shape)), dtype=np.float32).reshape(shape)
        fitted = fit([latents], [STEP])
        larger = quantise(smooth_latents(600, (shape[0], 20, 20)), STEP)
        np.testing.assert_array_equal(
            fitted.decode(fitted.encode(larger, STEP), larger.shape, STEP), larger
        )

    def test_constant_channel(self) -> None:
        latents = [smooth_latents(seed) for seed in range(3)]
        for image in latents:
            image[1] = 1.5
        fitted = fit(latents, [STEP])
        symbols = quantise(latents[0], STEP)
        payload = fitted.encode(symbols, STEP)
        np.testing.assert_array_equal(fitted.decode(payload, symbols.shape, STEP), symbols)

    @pytest.mark.parametrize(
        ("latents", "steps", "message"),
        [
            ([], [STEP], "0 latents"),
            ([np.zeros((2, 3, 3), np.float32)], [], "0 steps"),
            ([np.zeros((2, 3, 3), np.float32)], [0], "steps"),
            ([np.zeros((2, 3, 3), np.float32), np.zeros((3, 3, 3), np.float32)], [1], "channels"),
            ([np.full((2, 3, 3), np.nan, np.float32)], [STEP], "not finite"),
        ],
    )
    def test_refuses(
        self, latents: list[NDArray[np.float32]], steps: list[int], message: str
    ) -> None:
        with pytest.raises(FitError, match=message):
            fit(latents, steps)
