"""Bytes beside order-0 entropy and zstd, each worked out here by other means."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from diffusers import AutoencoderKL, VQModel
from numpy.typing import NDArray

from codec import checkpoint, images, quantizer
from codec.pipeline import Codec
from eval.coded_files import open_coded
from eval.coding_report import CodedImage, CodingReport, CodingRow, coding_table, remarks
from eval.entropy_coding import measure_coding, zstd_bytes
from tests.codec.foreign_models import save_model
from tests.codec.index_coders import handmade

Pixels = NDArray[np.uint8]
_BLOCKS = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def codec() -> Codec:
    """The embedded model."""
    return Codec.from_pretrained(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Pixels]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        images.save(pixels(96, 128, seed), folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def report(codec: Codec, photos: Path) -> CodingReport:
    paths = images.find([photos])
    return measure_coding(codec, paths, qualities=(30, 50), folder=photos, runs=1, threads=1)


def entropy_bytes(symbols: list[int]) -> float:
    """Order-0 entropy by counting."""
    counts = Counter(symbols).values()
    return -sum(n * math.log2(n / len(symbols)) for n in counts) / 8


def test_all_are_measured_on_the_symbols_of_the_files(
    report: CodingReport, codec: Codec, photos: Path
) -> None:
    row = report.rows[1]
    assert row.quality == 50
    assert [image.name for image in row.images] == ["0.png", "1.png"]
    found = row.images[0]
    data = codec.compress(photos / "0.png", quality=50)
    assert codec.info is not None
    step = quantizer.step_from_quality(50, codec.info.quality_50_step or 0)
    # From the latents that a file gives back, not by the coder.
    config, latents = codec.autoencoder.config, codec.unpack(data)[0].double().numpy()
    unrounded = (latents / config.scaling_factor + (config.shift_factor or 0)) * 2**16 / step
    symbols = np.rint(unrounded).astype(np.int32)
    assert np.abs(unrounded - symbols).max() < 1e-3
    assert found.file == len(data)
    assert found.num_symbols == symbols.size == 4 * 12 * 16
    assert (found.lowest, found.highest) == (symbols.min(), symbols.max())
    assert found.order0_image == pytest.approx(entropy_bytes(symbols.ravel().tolist()))
    channels = sum(entropy_bytes(plane.ravel().tolist()) for plane in symbols)
    assert found.order0_channels == pytest.approx(channels)
    assert found.order0_channels <= found.order0_image
    frame = zstandard.ZstdCompressor(level=19).compress(symbols.astype(np.int8).tobytes())
    assert (found.zstd, found.zstd_type) == (len(frame), "int8")


def test_the_estimate_is_close_to_the_payload(report: CodingReport) -> None:
    for row in report.rows:
        assert row.deviation is not None
        assert abs(row.deviation) < 1
    for image in report.rows[1].images:
        assert image.estimate is not None
        assert image.payload == pytest.approx(image.estimate, abs=3)
        assert image.payload < image.file


def test_a_broken_image_is_recorded(report: CodingReport) -> None:
    assert [error.name for error in report.errors] == ["broken.png"]


def test_symbols_that_do_not_fit_a_byte_are_said() -> None:
    for highest, kind in ((127, "int8"), (128, "int16"), (2**15, "int32")):
        planes = [np.array([[-128, highest]], np.int32)]
        assert zstd_bytes(planes)[1] == kind
    wide = [np.full((4, 4), 300, np.int32), np.full((2, 2), -5, np.int32)]
    content = b"\x2c\x01" * 16 + b"\xfb\xff" * 4  # little-endian, one plane after the other
    assert zstd_bytes(wide)[0] == len(zstandard.ZstdCompressor(level=19).compress(content))


def row_of(*payloads: int, zstd_type: str = "int8") -> CodingRow:
    return CodingRow(
        50,
        tuple(
            CodedImage(
                "a", 100, -1, 1, bytes_ + 10, bytes_, bytes_ * 1.02, 100, 90, 80, zstd_type, 640
            )
            for bytes_ in payloads
        ),
    )


def test_gains_are_of_the_sums() -> None:
    row = row_of(50, 70)
    assert row.gain("order0_image") == pytest.approx(40)
    assert row.gain("zstd") == pytest.approx(25)
    assert row.gain("zstd", "file") == pytest.approx(12.5)
    assert row.deviation == pytest.approx(2)
    assert row.bits_per_symbol == pytest.approx(8 * 120 / 200)
    assert row.rate_bpp == pytest.approx(8 * 140 / 1280)
    assert list(row.rivals()) == ["order0_image", "order0_channels", "zstd"]


def test_the_report_for_people_and_programs(report: CodingReport) -> None:
    assert coding_table(report).row_count == 2
    content = json.loads(report.to_json())
    assert content["rows"][0]["gain_percent"]["payload"]["zstd"] == report.rows[0].gain("zstd")
    assert content["coder_id"] == report.coder_id
    sentences = "\n".join(remarks(report))
    assert "entropy encoding" in sentences
    assert "% of the network's" in sentences
    assert "int8" not in sentences
    wide = CodingReport("m", "0" * 16, (row_of(50, zstd_type="int16"),), None, ())
    assert "1 of 1 times a symbol does not fit int8: zstd got int16 there" in remarks(wide)


def test_times_are_medians_on_as_many_threads_as_asked(report: CodingReport) -> None:
    before = torch.get_num_threads()
    times = report.times
    assert times is not None
    assert (times.runs, times.threads, times.network) == (1, 1, "float32 on cpu")
    assert times.network_encode_ms > 0
    assert times.network_decode_ms > 0
    assert times.entropy_encode_ms > 0
    assert times.entropy_decode_ms > 0
    assert torch.get_num_threads() == before


def test_no_image_at_all(codec: Codec) -> None:
    report = measure_coding(codec, [], qualities=(50,))
    assert report.times is None
    assert coding_table(report).row_count == 0
    assert report.rows[0].deviation is None
    json.loads(report.to_json())


def test_a_quality_out_of_range_shows_before_the_first_image(codec: Codec) -> None:
    with pytest.raises(ValueError, match="found quality 101"):
        measure_coding(codec, [], qualities=(101,))


@pytest.mark.parametrize("kind", ["tables in the file", "codes"])
def test_files_of_other_autoencoders_are_taken_apart(
    kind: str, tmp_path: Path, pixels: Callable[..., Pixels]
) -> None:
    torch.manual_seed(0)
    model = (
        VQModel(**_BLOCKS, num_vq_embeddings=16) if kind == "codes" else AutoencoderKL(**_BLOCKS)
    )
    model.save_pretrained(tmp_path)
    codec = Codec.from_pretrained(tmp_path, dtype="fp32")
    data = codec.compress(pixels(40, 48))
    coded = open_coded(codec, data)
    assert len(coded.encode()) == coded.coded_bytes < len(data)
    assert all(map(np.array_equal, coded.decode(), coded.planes))
    if kind == "codes":
        assert coded.estimate_bits is None
        assert [plane.shape for plane in coded.planes] == [(20, 24)]
    else:
        assert coded.estimate_bits is not None
        assert coded.coded_bytes == pytest.approx(coded.estimate_bits / 8, abs=3)
        assert len(coded.planes) == 4


def test_codes_are_compared_with_tables_that_travel(
    tmp_path: Path, pixels: Callable[..., Pixels]
) -> None:
    folder = save_model("vq", tmp_path)
    own = Codec.from_pretrained(folder, device="cpu", dtype="fp32")
    images.save(pixels(64, 80), tmp_path / "a.png")
    (before,) = measure_coding(own, [tmp_path / "a.png"], qualities=(None,), runs=1).rows
    assert before.images[0].own_tables == before.images[0].payload
    handmade(32).save(folder / "entropy.safetensors")
    checkpoint.finalize(
        folder,
        name="codes",
        default_quality=None,
        quality_50_step=None,
        license_name="CC0-1.0",
        summary="Random weights for tests.",
    )
    codec = Codec.from_pretrained(folder, device="cpu", dtype="fp32")
    report = measure_coding(codec, [tmp_path / "a.png"], qualities=(None,), runs=1)
    (row,) = report.rows
    found, data = row.images[0], codec.compress(tmp_path / "a.png")
    assert found.num_symbols == 8 * 10
    assert (found.own_tables, found.zstd) == (before.images[0].payload, before.images[0].zstd)
    assert found.estimate == handmade(32).estimate_bits(tuple(open_coded(codec, data).planes)) / 8
    assert row.bits_per_symbol == 8 * found.payload / 80
    assert row.rate_bpp == 8 * len(data) / (64 * 80)
    assert list(row.rivals()) == ["order0_channels", "zstd", "own_tables"]
    assert f"{row.bits_per_symbol:.3f} bits a symbol" in remarks(report)[0]
    assert report.times is not None


def test_the_embedded_coder_gives_the_payload_again(
    codec: Codec, pixels: Callable[..., Pixels]
) -> None:
    data = codec.compress(pixels(70, 90))
    coded = open_coded(codec, data)
    payload = coded.encode()
    assert len(payload) == coded.coded_bytes
    assert payload in data
