"""`latent-codec-eval distance`: what it prints and writes, and how it refuses wrong use."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import console, images
from eval import cli
from eval.lpips import PerceptualDistance
from tests.eval.backbones import random_backbone

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of real weights is needed."""

    def load(*arguments: object) -> PerceptualDistance:
        return random_backbone()

    monkeypatch.setattr("eval.lpips.load_lpips", load)


@pytest.fixture
def folders(tmp_path: Path, pixels: Callable[..., Pixels]) -> tuple[Path, Path]:
    found = (tmp_path / "a", tmp_path / "b")
    for folder, number in zip(found, (5, 3), strict=True):
        (folder / "class").mkdir(parents=True)
        for seed in range(number):
            images.save(pixels(40, 40, seed + number), folder / "class" / f"{seed}.png")
    return found


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run(cli.app, [str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_both_distances_of_equal_numbers(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("distance", *folders, "-o", tmp_path / "out", "--json") == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content == json.loads((tmp_path / "out" / "distance.json").read_text())
    assert content["found"] == [5, 3]
    assert content["kernel"]["num_images"] == content["frechet"]["num_images"] == 3
    assert content["size"] == [40, 40]
    assert "3 images for 512 features" in printed.err
    assert run("distance", *folders) == 0
    assert "SqueezeNet 1.1" in capsys.readouterr().out


def test_images_of_several_sizes_need_one(
    folders: tuple[Path, Path],
    pixels: Callable[..., Pixels],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images.save(pixels(48, 40), folders[1] / "class" / "other.png")
    assert run("distance", *folders) == 1
    assert "give --size to compare centre squares" in capsys.readouterr().err
    assert run("distance", *folders, "--size", "32", "--json") == 0
    assert json.loads(capsys.readouterr().out)["size"] == [32, 32]


def test_a_broken_image_and_an_empty_folder_are_one_sentence(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[0] / "broken.png").write_bytes(b"nothing")
    assert run("distance", *folders) == 1
    (tmp_path / "empty").mkdir()
    assert run("distance", folders[1], tmp_path / "empty") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "broken.png" in first
    assert "found no images in" in second
    assert run("distance", folders[1], tmp_path / "nowhere") == 2
