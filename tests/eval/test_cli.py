"""The `latent-codec-eval` command: exit codes, what it prints where, and its start."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import console, images
from eval import benchmark, cli
from eval.lpips import BackboneMissingError
from eval.terminal import EXTRA_MODULES

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


def test_images_prints_a_table_and_writes_results(
    photos: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("images", photos, "-o", out, "-m", model_dir, "-q", "60", "--no-lpips") == 0
    printed = capsys.readouterr()
    assert "mean of 2" in printed.out
    assert str(out / "results.json") in printed.out
    content = json.loads((out / "results.json").read_text())
    assert content["settings"]["quality"] == 60
    assert [image["name"] for image in content["images"]] == ["0.png", "1.png"]


def test_json_is_all_that_stdout_gets(
    photos: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("images", photos, "-o", tmp_path, "-m", model_dir, "--no-lpips", "--json")
    assert run(*words, "--limit", "1", "--step", "0.5", "--dtype", "fp32") == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((tmp_path / "results.json").read_text())
    assert len(content["images"]) == 1
    assert content["settings"]["step"] == 0.5


def test_a_broken_image_shows_in_the_exit_code(
    photos: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    assert run("images", photos, "-o", tmp_path, "-m", model_dir, "--no-lpips") == 1
    printed = capsys.readouterr()
    assert "mean of 2" in printed.out
    assert [line for line in printed.err.splitlines() if "broken.png" in line and "error" in line]


def test_without_a_backbone_lpips_is_null_and_the_reader_told(
    photos: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*args: object) -> None:
        raise BackboneMissingError("name a file with --lpips-backbone FILE")

    monkeypatch.setattr("eval.lpips.load_lpips", missing)
    assert run("images", photos, "-o", tmp_path, "-m", model_dir) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["mean"]["lpips"] is None
    assert "--lpips-backbone FILE" in content["notes"][0]
    assert "--lpips-backbone FILE" in capsys.readouterr().err


def test_a_backbone_that_was_named_must_work(
    photos: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("images", photos, "-o", tmp_path, "-m", model_dir, "--lpips-backbone", "none.pth")
    assert run(*words) == 1
    assert "none.pth does not exist" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("images",),
        ("images", "x", "-o", "y", "--quality", "50", "--step", "1"),
        ("images", "x", "-o", "y", "--quality", "0"),
        ("images", "x", "-o", "y", "--no-lpips", "--lpips-backbone", "f"),
        ("bench", "--size", "100"),
        ("nothing",),
    ],
)
def test_wrong_use_exits_with_two(words: tuple[str, ...]) -> None:
    assert run(*words) == 2


def test_a_missing_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("images", tmp_path / "none", "-o", tmp_path) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_demo_names_its_page(
    photos: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert run("demo", photos, "-o", out, "-m", model_dir) == 0
    assert f"page: {out / 'index.html'}" in capsys.readouterr().out
    assert (out / "index.html").is_file()


def test_bench_prints_ratios(
    model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "PICK_SECONDS", 0.001)
    widths = (8,) * 4
    small = {"encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
    rival = benchmark.Contestant("small", lambda: benchmark.AutoencoderTiny(**small))
    monkeypatch.setattr(benchmark, "rivals", lambda: (rival,))
    assert run("bench", "-m", model_dir, "--size", "64", "--runs", "1") == 0
    assert "tiny against small: " in capsys.readouterr().out
    assert run("bench", "-m", model_dir, "--size", "64", "--runs", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ratios"][0]["rival"] == "small"


def test_a_package_that_is_not_installed_is_named() -> None:
    message = r"'skimage'.*latent-codec\[eval\]"

    def needs() -> AbstractContextManager[None]:
        return console.needs_extra("eval", EXTRA_MODULES)

    with pytest.raises(console.MissingExtraError, match=message), needs():
        raise ModuleNotFoundError("No module named 'skimage.metrics'", name="skimage.metrics")
    with pytest.raises(ModuleNotFoundError, match="other"), needs():
        raise ModuleNotFoundError("other", name="other")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from eval import cli\n"
        "try: cli.console.run(cli.app, ['images', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'PIL', 'rich.table'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Example:" in found.stdout
    assert "latent-codec-eval images photos/ -o results/" in found.stdout
