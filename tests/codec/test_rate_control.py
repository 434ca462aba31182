"""Wishes for a file's size, and the search for the best file that fits."""

import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from codec import Codec, backbone, console, packing, quantizer
from codec.cli import app
from codec.entropy import SymbolCoder
from codec.entropy.context_coder import ContextCoder
from codec.rate_control import RateError, Wish, largest_that_fits, trade_at


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.from_pretrained()


def natural_picture() -> PIL.Image.Image:
    """Shades, edges and grain, 128x96, much as a photograph has them."""
    rows, columns = np.mgrid[:96, :128] / 96
    grain = np.random.default_rng(0).normal(size=(96, 128, 3)) * 6
    shades = np.stack([rows * 200, columns * 150, 220 - 90 * rows * columns], -1)
    shades[30:70, 40:90] *= 0.4
    shades += 40 * np.sin(20 * columns * rows)[..., None]
    return PIL.Image.fromarray(np.clip(shades + grain, 0, 255).astype(np.uint8))


def run(*words: object) -> int:
    """Run the command; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        console.run(app, [str(word) for word in words])
    return int(ended.value.code or 0)


def pack(quality: float) -> bytes:
    """A file that grows with every tenth of the quality."""
    return bytes(100 + round(quality * 10))


@pytest.mark.parametrize(("limit", "quality"), [(110, 1.0), (111, 1.1), (600, 50.0), (5000, 100.0)])
def test_takes_the_highest_quality_that_fits(limit: int, quality: float) -> None:
    assert largest_that_fits(pack, limit) == pack(quality)


def test_few_files_are_packed() -> None:
    asked: list[float] = []

    def count(quality: float) -> bytes:
        asked.append(quality)
        return pack(quality)

    largest_that_fits(count, 777)
    assert len(asked) <= 11


def test_says_how_small_the_smallest_file_is() -> None:
    with pytest.raises(RateError, match="found 110 bytes for the smallest file"):
        largest_that_fits(pack, 109)


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(["quality", "step", "target_bytes", "target_bpp"], 2)),
)
def test_wishes_exclude_each_other(first: str, second: str) -> None:
    with pytest.raises(RateError, match=f"{first} and {second}"):
        Wish(**{first: 10, second: 10})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["target_bytes", "target_bpp"])
def test_targets_are_numbers_above_zero(name: str, value: float) -> None:
    with pytest.raises(RateError, match=f"found {name} {value}"):
        Wish(**{name: value})


def test_limits() -> None:
    assert Wish(target_bytes=900).limit(10, 10) == 900
    assert Wish(target_bpp=0.5).limit(100, 81) == 506


def test_the_trade_fades_towards_high_qualities() -> None:
    trades = [trade_at(quality) for quality in (1, 35, 40, 45, 50, 100)]
    assert trades == sorted(trades, reverse=True)
    assert trades[0] == trades[1] == pytest.approx(0.1)
    assert trades[-2:] == [0, 0]


class TestFiles:
    """Real files of the embedded model."""

    def test_the_best_file_that_fits(self, codec: Codec) -> None:
        picture = natural_picture()
        limit = 450
        data = codec.compress(picture, target_bytes=limit)
        step = packing.read_file(data).header.step_size
        assert step is not None
        assert codec.info is not None
        assert codec.info.quality_50_step is not None
        quality = quantizer.quality_of_step(round(step * 65536), codec.info.quality_50_step)
        assert len(data) <= limit < len(codec.compress(picture, quality=round(quality + 0.1, 1)))

    def test_bits_per_pixel_count_the_whole_file(self, codec: Codec) -> None:
        picture = natural_picture()
        picture.info["comment"] = "x" * 100
        size = picture.width * picture.height
        for keep in (False, True):
            data = codec.compress(picture, target_bpp=0.4, keep_metadata=keep)
            assert 0.9 * 0.4 < 8 * len(data) / size <= 0.4

    def test_latents_are_packed_to_a_target_too(self, codec: Codec) -> None:
        latents = codec.encode(natural_picture())
        assert len(codec.pack(latents, target_bytes=450)) <= 450

    def test_no_decoder_runs(self, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(type(codec.autoencoder), "decode")
        assert len(codec.compress(natural_picture(), target_bytes=450)) <= 450

    def test_says_when_nothing_fits(self, codec: Codec) -> None:
        with pytest.raises(RateError, match="expected at most 50"):
            codec.compress(natural_picture(), target_bytes=50)

    def test_rate_aware_rounding_saves_bytes_for_the_same_error(self, codec: Codec) -> None:
        """At quality 20, against plain rounding with a coarser step of the same size of file."""
        assert codec.info is not None
        assert codec.info.quality_50_step is not None
        coder = codec.coder
        assert isinstance(coder, SymbolCoder | ContextCoder)
        raw = backbone.encode_pixels(codec.autoencoder, np.asarray(natural_picture()))

        def measured(quality: float, trade: float) -> tuple[float, float]:
            assert codec.info is not None
            assert codec.info.quality_50_step is not None
            step = quantizer.step_from_quality(quality, codec.info.quality_50_step)
            symbols = coder.quantize(quantizer.in_steps(raw, step), step, trade)
            error = raw - quantizer.dequantize(symbols, step)
            return coder.estimate_bits(symbols, step), float((error**2).mean())

        plain_bits, plain_error = measured(20, 0.0)
        aware_bits, aware_error = measured(22, trade_at(20))
        assert aware_bits < plain_bits
        assert aware_error < plain_error

    def test_no_trade_is_rounding(self, codec: Codec) -> None:
        raw = backbone.encode_pixels(codec.autoencoder, np.asarray(natural_picture()))
        coder = codec.coder
        assert isinstance(coder, SymbolCoder | ContextCoder)
        values = quantizer.in_steps(raw, 65536)
        np.testing.assert_array_equal(
            coder.quantize(values, 65536, 0.0), quantizer.quantize(raw, 65536)
        )

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, target = tmp_path / "a.png", tmp_path / "a.lc"
        natural_picture().save(source)
        assert run("encode", source, "-o", target, "--target-bytes", 400) == 0
        assert target.stat().st_size <= 400
        assert "  quality " in capsys.readouterr().out
        assert run("encode", source, "-o", target, "--target-bpp", 0.0001, "--force") == 1
        assert "smallest file" in capsys.readouterr().err
        assert run("encode", source, "-o", target, "--target-bpp", 1, "--quality", 5) == 2
        assert "quality and target_bpp" in capsys.readouterr().err
        assert run("encode", source, "-o", target, "--target-bytes", -5) == 2
        assert target.stat().st_size <= 400  # the first file is still there
