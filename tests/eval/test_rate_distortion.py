"""Evaluation of a folder: real files, every key of results.json, a broken image among good ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from codec import images
from codec.pipeline import Codec
from eval import metrics
from eval.rate_distortion import evaluate_images, measure, round_trip
from eval.results import Evaluation, ImageResult, finite, mean_of

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, dtype="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Pixels]) -> Path:
    """A large image, a small gray one in a folder below, and one that is damaged."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    images.save(pixels(170, 180), folder / "large.png")
    images.save(pixels(9, 20), folder / "below" / "gray.png", is_gray=True)
    whole = (folder / "large.png").read_bytes()
    (folder / "damaged.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def evaluation(codec: Codec, folder: Path) -> Evaluation:
    return evaluate_images(codec, images.find([folder]), folder=folder, notes=["a note"])


def test_results_hold_what_the_issue_names(evaluation: Evaluation, tmp_path: Path) -> None:
    path = evaluation.write(tmp_path / "new")
    content = json.loads(path.read_text())
    assert path.name == "results.json"
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    assert {"model", "ids", "settings", "mean", "images", "errors", "versions", "command"} <= set(
        content
    )
    assert set(content["ids"]) == {"latent_id", "coder_id", "decoder_id"}
    per_image = {"name", "width", "height", "bpp", "psnr", "ssim", "ms_ssim", "lpips"}
    assert all(
        per_image | {"size_bytes", "encode_s", "decode_s"} == set(i) for i in content["images"]
    )
    assert content["model"] == "tiny"
    assert content["settings"]["quality"] == 50
    assert content["settings"]["dtype"] == "float32"
    assert content["settings"]["lpips"] is None
    assert content["notes"] == ["a note"]


def test_a_damaged_image_is_recorded_and_passed_over(evaluation: Evaluation) -> None:
    assert [failure.name for failure in evaluation.errors] == ["damaged.png"]
    assert "damaged.png" in evaluation.errors[0].error
    assert [result.name for result in evaluation.images] == ["below/gray.png", "large.png"]


def test_figures_are_those_of_the_real_file(
    evaluation: Evaluation, codec: Codec, folder: Path
) -> None:
    path = folder / "large.png"
    data = codec.compress(path)
    shown = np.asarray(codec.decompress(data))
    original = np.asarray(PIL.Image.open(path))
    result = evaluation.images[1]
    assert result.size_bytes == len(data)
    assert result.bpp == 8 * len(data) / (180 * 170)
    assert result.psnr == metrics.psnr(original, shown)
    assert result.ms_ssim == metrics.ms_ssim(original, shown)
    assert result.encode_s > 0
    assert result.decode_s > 0


def test_small_gray_images_have_no_multi_scale_figure(evaluation: Evaluation) -> None:
    gray = evaluation.images[0]
    assert (gray.width, gray.height) == (20, 9)
    assert (gray.ssim, gray.ms_ssim, gray.lpips) == (None, None, None)
    assert gray.psnr is not None


def test_the_mean_is_over_images_that_have_a_value(evaluation: Evaluation) -> None:
    gray, large = evaluation.images
    assert evaluation.mean.bpp == pytest.approx((gray.bpp + large.bpp) / 2)
    assert evaluation.mean.ms_ssim == large.ms_ssim
    assert evaluation.mean.lpips is None


def test_no_image_at_all_gives_empty_means() -> None:
    assert mean_of([]).psnr is None


def test_an_identical_reconstruction_is_valid_json(codec: Codec) -> None:
    image = images.Image(np.zeros((16, 16, 3), dtype=np.uint8))
    trip = round_trip(codec, image)
    perfect = measure("same", type(trip)(image, trip.data, image, 0.1, 0.1))
    assert perfect.psnr is None
    assert finite(float("inf")) is None
    json.dumps([getattr(perfect, k) for k in ImageResult.__dataclass_fields__], allow_nan=False)


def test_a_step_takes_the_place_of_quality(codec: Codec, folder: Path) -> None:
    found = evaluate_images(codec, [folder / "large.png"], step=0.25)
    assert found.settings.quality is None
    assert found.settings.step == 0.25
    assert found.images[0].name == "large.png"


def test_wrong_settings_show_before_the_first_image(codec: Codec) -> None:
    with pytest.raises(ValueError, match="found quality 101"):
        evaluate_images(codec, [], quality=101)
