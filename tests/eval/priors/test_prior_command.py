"""`latent-codec-eval prior`: what it draws, measures and writes, and how it refuses wrong use."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import console, images
from codec.prior.opening import DiffusionPrior
from eval import cli
from eval.lpips import PerceptualDistance
from eval.priors import classifier
from eval.priors.classifier import ClassifierSettings
from tests.codec.prior.tiny_priors import CLASSES, SIDE, write_tiny_prior
from tests.eval.backbones import random_backbone

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of real weights, and a small budget."""

    def load(*arguments: object) -> PerceptualDistance:
        return random_backbone()

    settings = ClassifierSettings(width=8, epochs=2, batch_size=4)
    monkeypatch.setattr("eval.lpips.load_lpips", load)
    monkeypatch.setattr("eval.priors.measuring.USUAL", settings)
    monkeypatch.setattr("eval.priors.copying.COMPARED", 3)
    monkeypatch.setattr(classifier, "_GROUPS", 4)


@pytest.fixture
def splits(tmp_path: Path, pixels: Callable[..., Pixels]) -> list[str | Path]:
    words: list[str | Path] = []
    for number, split in enumerate(("train", "validation", "test")):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for seed in range(3):
                picture = pixels(8 * SIDE, 9 * SIDE, 9 * number + 3 * label + seed)
                images.save(picture, folder / f"{seed}.png")
        words += [f"--{split}", tmp_path / split]
    return words


@pytest.fixture
def prior(tmp_path: Path, model_dir: Path) -> Path:
    return write_tiny_prior(tmp_path / "prior", model_dir)


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run(cli.app, [str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_prior_is_drawn_measured_and_shown(
    prior: Path,
    splits: list[str | Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ("prior", prior, *splits, "-o", out, "--num", "16", "--steps", "2", "--guidance", "2")
    assert run(*words, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "results.json").read_text())
    assert content["drawing"]["guidance"] == 2
    assert len(list((out / "samples" / "dress").glob("*.png"))) == 6  # of 16, by three classes
    rows = {(one["images"], one["reference"]) for one in content["distances"]}
    assert len(rows) == len(content["distances"]) == 2 * 7
    assert {one["kernel"]["num_images"] for one in content["distances"]} == {9}
    assert set(content["distance_ratios"]) == {"validation", "test"}
    assert set(content["classifier"]["by_class"]) == set(CLASSES)
    assert len(content["copies"]["samples"]) == len(content["copies"]["validation"]) == 3
    assert {"samples.webp", "nearest.webp"} <= set(os.listdir(out))
    assert set(content["verdicts"]) == {"distance to validation", "distance to test", "accuracy"}

    # Again: what is there is used, and a sample that is missing is drawn as it was.
    lost = sorted((out / "samples" / "hat").iterdir())[0]
    before = lost.read_bytes()
    lost.unlink()
    drawn: list[int] = []
    sample: Callable[..., Any] = DiffusionPrior.sample

    def note(self: Any, labels: Any, seeds: Any, **settings: Any) -> Any:
        drawn.extend(seeds)
        return sample(self, labels, seeds, **settings)

    monkeypatch.setattr(DiffusionPrior, "sample", note)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert drawn == [int(lost.stem)]
    assert lost.read_bytes() == before
    for name in ("samples", "Gaussian latents, by channel", "nearest training image"):
        assert name in printed
    assert json.loads((out / "results.json").read_text())["distances"] == content["distances"]


def test_samples_of_other_settings_are_kept_apart(
    prior: Path, splits: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.priors.drawing import draw_samples, settings_of

    class Prior:
        """Draws flat pictures of the guidance."""

        def __init__(self) -> None:
            from codec.prior import open_prior

            opened = open_prior(prior)
            self.info, self.codec = opened.info, opened.codec

        def sample(self, labels: Any, seeds: Any, *, guidance: float, **_: object) -> Any:
            for _ in seeds:
                yield np.full((8 * SIDE, 8 * SIDE, 3), int(guidance), dtype=np.uint8)

    tiny, folder = Prior(), tmp_path / "drawn"
    first = draw_samples(tiny, folder, settings_of(tiny, 2.0, 5), number=4)
    assert [item.source for item in first.items] == [
        "dress/000000.png",
        "dress/000003.png",
        "hat/000001.png",
        "t-shirt/000002.png",
    ]
    other = settings_of(tiny, 3.0, 5)
    with pytest.raises(ValueError, match=r"other settings .*guidance 2\.0, now 3\.0.*--force"):
        draw_samples(tiny, folder, other, number=4)
    again = draw_samples(tiny, folder, other, number=2, force=True)
    assert [int(one[0, 0, 0]) for one in again] == [3, 3]
    assert not (folder / "t-shirt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ValueError, match="no samples of a prior"):
        draw_samples(tiny, tmp_path / "mine", other, number=2, force=True)


def test_a_folder_of_samples_is_measured_with_a_codec(
    splits: list[str | Path],
    tmp_path: Path,
    model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    pixels: Callable[..., Pixels],
) -> None:
    ready = tmp_path / "ready"
    for name in CLASSES:
        (ready / name).mkdir(parents=True)
        for seed in range(6):
            images.save(pixels(8 * SIDE, 8 * SIDE, seed), ready / name / f"{seed}.png")
    words = (*splits, "-o", tmp_path / "out", "-m", model_dir)
    assert run("prior", ready, *words, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["num_samples"], content["drawing"], content["codec"]) == (18, None, "tiny")

    refused = {
        ("--guidance", "2"): "whose samples are there already",
        ("--num", "99"): "found 18 samples",
    }
    for options, sentence in refused.items():
        assert run("prior", ready, *words, *options) == 1
        assert sentence in capsys.readouterr().err
    shutil.copytree(ready / "hat", ready / "sofa")
    assert run("prior", ready, *words) == 1
    assert "found class 'sofa'" in capsys.readouterr().err
    images.save(pixels(40, 48), ready / "hat" / "0.png")
    assert run("prior", ready, *words) == 1
    assert "expected one size" in capsys.readouterr().err


def test_wrong_words_are_one_sentence(
    prior: Path, splits: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("-o", tmp_path / "out")
    assert run("prior", "no-such-prior", *splits, *out) == 1
    assert run("prior", prior, *splits, *out, "-m", "kl-f8d4") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "found no prior 'no-such-prior'" in first
    assert "names its own codec" in second
    assert run("prior", prior, *splits[2:], *out) == 2
