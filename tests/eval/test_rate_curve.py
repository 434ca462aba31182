"""Curves over real files: the same pictures for all, resumed after a kill, cached by content."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codec import images
from codec.pipeline import Codec
from eval import metrics
from eval.file_codecs import CLASSIC, JPEG, ModelCodec, UnquantizedLatents
from eval.rate_curve import CurveMeasurer, RateReport, num_trips
from eval.rate_distortion import RoundTrip
from eval.result_cache import CACHE_FILE, ResultCache

Pixels = NDArray[np.uint8]
NUM_IMAGES = 2


@dataclass
class Counting:
    """A classic codec that counts what it does and may be interrupted."""

    classic: object
    stop_after: int = 10**9
    trips: list[float | None] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.classic, name)

    def round_trip(self, image: images.Image, quality: float | None) -> RoundTrip:
        if len(self.trips) == self.stop_after:
            raise KeyboardInterrupt
        self.trips.append(quality)
        return self.classic.round_trip(image, quality)  # type: ignore[attr-defined,no-any-return]


class MeanDifference(nn.Module):
    """Stands for LPIPS, whose backbone may not be at hand."""

    name = "LPIPS(stub)"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        return self.weight * (image - reference).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def codec() -> Codec:
    """The embedded model."""
    return Codec.from_pretrained(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Pixels]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(NUM_IMAGES):
        images.save(pixels(48, 64 + 16 * seed, seed), folder / f"{seed}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / CACHE_FILE)


@pytest.fixture
def jpeg() -> Counting:
    return Counting(replace(JPEG, qualities=(20, 60)))


def measured(cache: ResultCache, codecs: list[object], folder: Path) -> RateReport:
    return CurveMeasurer(cache).measure(codecs, images.find([folder]), folder=folder)  # type: ignore[arg-type]


def test_points_are_means_of_files_on_disk(
    codec: Codec, photos: Path, cache: ResultCache, tmp_path: Path
) -> None:
    contestants = [
        ModelCodec(codec, (30, 50)),
        UnquantizedLatents(codec),
        replace(JPEG, qualities=(20,)),
    ]
    assert num_trips(contestants) == 4
    advanced: list[None] = []
    report = CurveMeasurer(cache, MeanDifference()).measure(  # type: ignore[arg-type]
        contestants, images.find([photos]), folder=photos, advance=lambda: advanced.append(None)
    )
    assert len(advanced) == 4 * NUM_IMAGES
    ours, jpeg = report.curves
    assert [point.quality for point in ours.points] == [30, 50]
    sizes, psnrs = [], []
    for path in images.find([photos]):
        with PIL.Image.open(path) as picture:
            picture.save(tmp_path / "a.jpg", quality=20, optimize=True, progressive=True)
            original = np.asarray(picture)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
        psnrs.append(metrics.psnr(original, np.asarray(PIL.Image.open(tmp_path / "a.jpg"))))
    assert [result.size_bytes for result in jpeg.points[0].images] == sizes
    mean = jpeg.points[0].mean
    assert mean.size_bytes == np.mean(sizes)
    assert mean.bpp == pytest.approx(np.mean([8 * sizes[0] / (48 * 64), 8 * sizes[1] / (48 * 80)]))
    assert mean.psnr == pytest.approx(np.mean(psnrs))

    first = photos / "0.png"
    data = codec.compress(first, quality=30)
    result = ours.points[0].images[0]
    shown, original = np.asarray(codec.decompress(data)), np.asarray(PIL.Image.open(first))
    assert (result.name, result.size_bytes) == ("0.png", len(data))
    assert result.psnr == metrics.psnr(original, shown)
    difference = np.abs(shown / 127.5 - original / 127.5).mean()
    assert result.lpips == pytest.approx(difference, rel=1e-5)
    assert report.lpips == "LPIPS(stub)"


def test_the_default_and_the_unquantised_latents_stand_beside_the_curves(
    codec: Codec, photos: Path, cache: ResultCache
) -> None:
    report = measured(cache, [ModelCodec(codec, (30, 50)), UnquantizedLatents(codec)], photos)
    assert [curve.codec for curve in report.curves] == ["kl-f8d4"]
    assert report.default is not None
    assert report.default.quality == 50
    assert report.default.mean == report.curves[0].points[1].mean
    assert report.unquantised is not None
    alone = report.unquantised.points[0].mean
    assert (alone.size_bytes, alone.bpp, alone.encode_s) == (None, None, None)
    expected = []
    for path in images.find([photos]):
        decoded = codec.decode(codec.encode(path))[0].numpy()
        original = np.asarray(PIL.Image.open(path))
        expected.append(metrics.psnr(original, images.from_unit(decoded)))
    assert alone.psnr == pytest.approx(np.mean(expected))


def test_a_killed_run_goes_on_where_it_was(photos: Path, tmp_path: Path, jpeg: Counting) -> None:
    killed = replace(jpeg, stop_after=3, trips=[])
    with pytest.raises(KeyboardInterrupt):
        measured(ResultCache(tmp_path / "c"), [killed], photos)
    assert killed.trips == [20, 60, 20]
    resumed = measured(ResultCache(tmp_path / "c"), [jpeg], photos)
    assert jpeg.trips == [60]
    whole = measured(ResultCache(tmp_path / "other"), [jpeg.classic], photos)
    for first, second in zip(resumed.curves[0].points, whole.curves[0].points, strict=True):
        assert first.mean.bpp == second.mean.bpp
        assert first.mean.psnr == second.mean.psnr


def test_what_changed_is_measured_again(
    photos: Path, tmp_path: Path, jpeg: Counting, pixels: Callable[..., Pixels]
) -> None:
    cache = ResultCache(tmp_path / "c")
    measured(cache, [jpeg], photos)
    assert len(jpeg.trips) == 2 * NUM_IMAGES
    measured(cache, [jpeg], photos)
    assert len(jpeg.trips) == 2 * NUM_IMAGES
    sharper = Counting(replace(JPEG, qualities=(20,), options={"subsampling": "4:4:4"}))
    measured(cache, [sharper], photos)
    assert len(sharper.trips) == NUM_IMAGES
    images.save(pixels(48, 64, 9), tmp_path / "0.png")  # another picture of the same name
    measured(cache, [jpeg], tmp_path / "0.png")
    assert len(jpeg.trips) == 2 * NUM_IMAGES + 2
    for weight in (1.0, 2.0):  # other weights are another metric
        stub: list[object] = [Counting(jpeg.classic)]
        CurveMeasurer(cache, MeanDifference(weight)).measure(stub, [photos / "0.png"])  # type: ignore[arg-type]
        assert len(stub[0].trips) == 2  # type: ignore[attr-defined]


def test_pixels_that_came_back_before_are_not_measured_again(
    photos: Path, cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(cache, [replace(JPEG, qualities=(20,))], photos)
    monkeypatch.setattr("eval.rate_curve.measure", None)
    plain = replace(JPEG, qualities=(20,), options={"subsampling": "4:2:0"})
    second = measured(cache, [plain], photos)  # a larger file with the same pixels
    before, after = first.curves[0].points[0].mean, second.curves[0].points[0].mean
    assert after.psnr == before.psnr
    assert after.size_bytes != before.size_bytes


def test_an_image_that_one_codec_cannot_take_is_left_out_of_all(
    photos: Path, cache: ResultCache, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in images.find([photos]):
        (folder / path.name).write_bytes(path.read_bytes())
    images.save(np.zeros((1, 16_384, 3), np.uint8), folder / "wide.png")  # too wide for WebP
    (folder / "broken.png").write_bytes((photos / "0.png").read_bytes()[:200])
    few = [replace(CLASSIC[name], qualities=(20,)) for name in ("jpeg", "webp")]
    report = measured(cache, few, folder)
    assert report.num_images == NUM_IMAGES
    assert [error.name for error in report.errors] == ["broken.png", "wide.png"]
    assert "WEBP" in report.errors[1].error
    assert report.curves == measured(cache, few, photos).curves
    assert report.fingerprint == measured(cache, few, photos).fingerprint


def test_the_fingerprint_is_of_the_pixels(photos: Path, cache: ResultCache, tmp_path: Path) -> None:
    one = measured(cache, [replace(JPEG, qualities=(20,))], photos / "0.png")
    with PIL.Image.open(photos / "0.png") as picture:
        picture.save(tmp_path / "same.bmp")
    same = measured(cache, [replace(JPEG, qualities=(20,))], tmp_path / "same.bmp")
    both = measured(cache, [replace(JPEG, qualities=(20,))], photos)
    assert one.fingerprint == same.fingerprint != both.fingerprint


def test_nothing_measured_gives_empty_means(cache: ResultCache, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    report = measured(cache, [replace(JPEG, qualities=(20,))], tmp_path)
    assert report.num_images == 0
    assert report.curves[0].points[0].mean.bpp is None


def test_identical_files_are_noted(cache: ResultCache, tmp_path: Path) -> None:
    images.save(np.full((32, 32, 3), 128, np.uint8), tmp_path / "gray.png")
    report = measured(cache, [replace(JPEG, qualities=(90,))], tmp_path)
    assert report.curves[0].points[0].mean.psnr is None
    assert any("identical" in note for note in report.notes)
