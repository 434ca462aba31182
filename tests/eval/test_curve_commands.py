"""The commands `rd` and `coder`: what they print and write, and how they refuse wrong use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import console, images
from eval import cli
from eval.curve_commands import CODEC_NAMES
from eval.file_codecs import CLASSIC, ClassicCodec
from eval.lpips import BackboneMissingError
from eval.rate_distortion import RoundTrip

Pixels = NDArray[np.uint8]


def run(*words: str | Path) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as caught:
        console.run(cli.app, [str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def photos(tmp_path: Path, pixels: Callable[..., Pixels]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        images.save(pixels(40, 48, seed), folder / f"{seed}.png")
    return folder


@pytest.fixture(autouse=True)
def small_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the networks on small pictures."""
    monkeypatch.setattr("eval.entropy_coding.TIMED_SIDE", 64)


def qualities(content: dict[str, list[dict[str, list[dict[str, int]]]]]) -> list[list[int]]:
    return [[point["quality"] for point in curve["points"]] for curve in content["curves"]]


def test_rd_with_the_embedded_weights(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("rd", photos, "-o", out, "--codecs", "jpeg,ours", "--no-lpips")
    assert run(*words, "--qualities", "20,40", "--qualities", "ours=30") == 0
    printed = capsys.readouterr()
    assert "| kl-f8d4 | 50 (default) |" in printed.out
    assert printed.out.startswith((out / "rd.md").read_text())
    assert "no LPIPS" in printed.err
    content = json.loads((out / "rd.json").read_text())
    assert [curve["codec"] for curve in content["curves"]] == ["kl-f8d4", "jpeg"]
    assert qualities(content) == [[30, 50], [20, 40]]
    assert len((out / "rd.csv").read_text().splitlines()) == 1 + 1 + 2 + 2


def test_rd_goes_on_from_its_folder(
    photos: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("rd", photos, "-o", tmp_path, "-m", model_dir, "--no-lpips", "--qualities", "50")
    assert run(*words, "--codecs", "ours,jpeg", "--json") == 0
    first = json.loads(capsys.readouterr().out)

    def refuse(*arguments: object) -> RoundTrip:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(ClassicCodec, "round_trip", refuse)
    monkeypatch.setattr("eval.file_codecs.round_trip", refuse)
    assert run(*words, "--codecs", "ours,jpeg", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert second["curves"] == first["curves"]
    assert second["unquantised"] == first["unquantised"]


def test_rd_without_ours_loads_no_model(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("rd", photos, "-o", tmp_path, "--codecs", "webp", "--model", "none")
    assert run(*words, "--no-lpips", "--limit", "1", "--qualities", "5") == 0
    content = json.loads((tmp_path / "rd.json").read_text())
    assert (content["num_images"], content["default"]) == (1, None)


def test_rd_reports_a_broken_image_and_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    words = ("rd", photos, "-o", tmp_path, "--codecs", "jpeg", "--qualities", "5", "--no-lpips")
    assert run(*words) == 1
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "broken.png" in line and "error" in line]
    assert "Means over 2 images" in printed.out
    assert json.loads((tmp_path / "rd.json").read_text())["num_images"] == 2


def test_rd_without_a_backbone_says_what_to_provide(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*arguments: object) -> None:
        raise BackboneMissingError("name a file with --lpips-backbone FILE")

    monkeypatch.setattr("eval.lpips.load_lpips", missing)
    assert run("rd", photos, "-o", tmp_path, "--codecs", "jpeg", "--qualities", "5") == 0
    assert "no LPIPS: name a file with --lpips-backbone FILE" in capsys.readouterr().out
    assert json.loads((tmp_path / "rd.json").read_text())["lpips"] is None


def test_coder_prints_bytes_and_times(
    photos: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("coder", photos, "-m", model_dir, "--runs", "1", "--threads", "1", "--limit", "1")
    assert run(*words, "--qualities", "70,30") == 0
    printed = capsys.readouterr().out
    assert "zstd -19" in printed
    assert "1 threads, medians of 1" in printed
    assert run(*words, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["quality"] for row in content["rows"]] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert len(content["rows"][0]["images"]) == 1


def test_coder_reports_a_broken_image_and_goes_on(
    photos: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    assert run("coder", photos, "-m", model_dir, "--runs", "1", "--qualities", "50") == 1
    printed = capsys.readouterr()
    assert "broken.png" in printed.err
    assert "bytes of 2 images" in printed.out


def test_a_model_of_codes_has_no_qualities(tmp_path: Path, photos: Path) -> None:
    from diffusers import VQModel

    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    model = VQModel(
        block_out_channels=(8, 8),
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        norm_num_groups=4,
    )
    model.save_pretrained(tmp_path / "vq")
    words = (photos, "-m", tmp_path / "vq", "--limit", "1")
    assert run("coder", *words, "--runs", "1") == 0
    assert run("coder", *words, "--qualities", "50") == 2
    rd = ("rd", *words, "-o", tmp_path, "--codecs", "ours,jpeg", "--no-lpips")
    assert run(*rd, "--qualities", "ours=50") == 2
    assert run(*rd, "--qualities", "30") == 0
    assert qualities(json.loads((tmp_path / "rd.json").read_text())) == [[None], [30]]


@pytest.mark.parametrize(
    "words",
    [
        ("rd",),
        ("rd", "x"),
        ("rd", "x", "-o", "y", "--codecs", "ours,jpg"),
        ("rd", "x", "-o", "y", "--codecs", ""),
        ("rd", "x", "-o", "y", "--qualities", "0"),
        ("rd", "x", "-o", "y", "--qualities", "101"),
        ("rd", "x", "-o", "y", "--qualities", "1.5"),
        ("rd", "x", "-o", "y", "--qualities", "10,,20"),
        ("rd", "x", "-o", "y", "--qualities", "jpeg="),
        ("rd", "x", "-o", "y", "--codecs", "jpeg", "--qualities", "webp=10"),
        ("rd", "x", "-o", "y", "--no-lpips", "--lpips-backbone", "f"),
        ("rd", "x", "-o", "y", "--limit", "0"),
        ("coder",),
        ("coder", "x", "--qualities", "high"),
        ("coder", "x", "--threads", "0"),
        ("coder", "x", "--runs", "0"),
    ],
)
def test_wrong_use_exits_with_two(words: tuple[str, ...]) -> None:
    assert run(*words) == 2


def test_a_missing_folder_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in [("rd", tmp_path / "none", "-o", tmp_path / "out"), ("coder", tmp_path / "none")]:
        assert run(*words) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_that_the_command_offers_are_those_there_are() -> None:
    assert set(CODEC_NAMES) == {"ours", *CLASSIC}


def test_a_folder_of_a_cut_cache_is_mended(photos: Path, tmp_path: Path) -> None:
    words = ("rd", photos, "--codecs", "jpeg", "--qualities", "5,9", "--no-lpips", "-o")
    assert run(*words, tmp_path / "a") == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    cache = tmp_path / "b" / "cache.jsonl"
    cache.write_bytes(cache.read_bytes()[:-20])
    assert run(*words, tmp_path / "b") == 0
    first, second = (json.loads((tmp_path / k / "rd.json").read_text()) for k in "ab")
    means = [
        [(point["mean"]["bpp"], point["mean"]["psnr"]) for point in one["curves"][0]["points"]]
        for one in (first, second)
    ]
    assert means[0] == means[1]
