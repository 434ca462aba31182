"""The plan that is printed: what it extrapolates from, and how sure it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codec import Codec
from codec.dataset.encoder import find_model
from codec.dataset.estimate import estimate_job
from codec.dataset.items import SourceError
from codec.dataset.job import JobSettings, settle_step
from codec.dataset.outlook import Estimate, Interval, wilson_interval
from codec.dataset.preprocess import Preprocessing
from codec.dataset.sources import open_source
from codec.shards.forms import Content, ShardForm
from tests.codec.dataset.image_sets import jpeg, png, write_files


def settings(model: Path, form: ShardForm | None = None, **wishes: object) -> JobSettings:
    form = form or ShardForm()
    spec = find_model(str(model), "cpu", "fp32")
    step, quality = settle_step(spec, form.content, None, None)
    preprocessing = Preprocessing(**wishes)  # type: ignore[arg-type]
    return JobSettings(spec, preprocessing, form, step, quality, 4, 10, 256)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", {f"{n}.jpg": jpeg(n, 40, 40) for n in range(12)})


def test_a_whole_source_as_sample_gives_its_own_figures(photos: Path, model_dir: Path) -> None:
    found = estimate_job(open_source(photos), settings(model_dir, size=32))
    codec = Codec.from_pretrained(model_dir, device="cpu", dtype="fp32")
    pixels = [np.asarray(codec_input(path)) for path in sorted(photos.iterdir())]
    exact = sum(len(codec.compress(image)) for image in pixels)
    assert found.lc_bytes.value == pytest.approx(exact)
    assert found.float16_bytes == Interval(*[12 * 2 * 4 * 4 * codec.latent_channels] * 3)
    assert (found.num_images, found.num_records, found.num_shards) == (12, 12, 2)
    assert (found.num_sampled, found.num_checked, found.num_listed_errors) == (12, 12, 0)
    assert found.lc_bytes.low < exact < found.lc_bytes.high
    assert set(found.stage_seconds) == {"prepare", "encode", "pack"}
    assert found.hours(8) == pytest.approx(found.hours(1) / 8)
    assert found.worker_seconds == pytest.approx(sum(found.stage_seconds.values()))


def codec_input(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    from codec.dataset.items import Item
    from codec.dataset.preprocess import prepare

    item = Item(path.name, path.name, {})
    return prepare(path.read_bytes(), item, Preprocessing(size=32))[0][1]


def test_figures_for_another_number_of_images_scale(photos: Path, model_dir: Path) -> None:
    wishes = settings(model_dir, size=32, flip=True)
    small = estimate_job(open_source(photos), wishes)
    large = estimate_job(open_source(photos), wishes, num_images=1_200_000)
    assert (large.num_images, large.num_records, large.num_shards) == (
        1_200_000,
        2_400_000,
        120_000,
    )
    for name in ("lc_bytes", "float16_bytes", "jpeg_bytes"):
        assert getattr(large, name).value == pytest.approx(1e5 * getattr(small, name).value)


def test_raw_jobs_are_compared_with_files_too(photos: Path, model_dir: Path) -> None:
    raw = ShardForm(content=Content.FLOAT16)
    one = estimate_job(open_source(photos), settings(model_dir, raw, size=32))
    other = estimate_job(open_source(photos), settings(model_dir, size=32))
    assert one.lc_bytes == other.lc_bytes
    assert one.jpeg_bytes == other.jpeg_bytes


def test_errors_are_counted_among_all_that_are_decoded(photos: Path, model_dir: Path) -> None:
    for number in range(4):
        (photos / f"{number}.jpg").write_bytes(b"")
    (photos / "1.txt").write_bytes(b"\xff")  # known from listing
    found = estimate_job(open_source(photos), settings(model_dir, size=32), sample_images=3)
    assert found.num_sampled == 3
    assert found.num_checked == 11
    assert found.num_listed_errors == 1
    assert found.errors.value == pytest.approx(1 + 11 * 3 / 11)
    assert found.errors.low < found.errors.value < found.errors.high
    assert found.first_error is not None
    assert "is empty: expected an image file" in found.first_error
    assert found.num_records == 8


def test_a_source_of_broken_images_alone(tmp_path: Path, model_dir: Path) -> None:
    root = write_files(tmp_path, {"1.png": b"", "2.png": b"x"})
    found = estimate_job(open_source(root), settings(model_dir, size=32))
    assert found.num_records == 0
    assert found.lc_bytes == Interval(0, 0, 0)
    assert found.errors.value == 2
    assert any("is empty" in line for line in found.lines())


def test_a_source_without_images_is_refused(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(SourceError, match="found no image"):
        estimate_job(open_source(tmp_path), settings(model_dir, size=32))


def test_no_more_is_encoded_after_the_time_is_up(photos: Path, model_dir: Path) -> None:
    found = estimate_job(open_source(photos), settings(model_dir, size=32), max_seconds=-1)
    assert found.num_sampled == 4  # one batch


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_wilson_intervals_as_tables_have_them(
    count: int, total: int, low: float, high: float
) -> None:
    share, lower, upper = wilson_interval(count, total)
    assert share == count / total
    assert (lower, upper) == pytest.approx((low, high), abs=2e-4)


def test_the_report_in_words_and_for_programs() -> None:
    cpu = Estimate(
        num_images=1_000_000,
        num_listed_errors=3,
        num_records=999_000,
        num_shards=977,
        device="cpu",
        dtype="bfloat16",
        num_sampled=64,
        num_checked=1000,
        stage_seconds={"prepare": 0.01, "encode": 0.05, "pack": 0.03},
        errors=Interval(1003, 200, 5600),
        float16_bytes=Interval(32.768e9, 32.768e9, 32.768e9),
        lc_bytes=Interval(5.7e9, 5.4e9, 6.0e9),
        jpeg_bytes=Interval(65.9e9, 60e9, 71e9),
        first_error="a.jpg is empty: expected an image file",
    )
    text = "\n".join(cpu.lines())
    for part in (
        "1,000,000 images give 999,000 records in 977 shards",
        "prepare 10.0 ms, encode 50.0 ms, pack 30.0 ms an image",
        "25.0 hours on 1 core, 3.1 hours on 8 cores, 23 minutes on 64 cores",
        "32.768 GB (32.768 to 32.768) as fp16",
        "5.700 GB (5.400 to 6.000) as .lc",
        "as JPEG of quality 90, the same pixels",
        "1,003 to expect (200 to 5,600), 3 of them known, by 1,000 images decoded",
        "the first: a.jpg is empty",
    ):
        assert part in text
    gpu = replace(
        cpu, device="cuda", stage_seconds={"prepare": 0.01, "encode": 0.004, "pack": 0.005}
    )
    assert gpu.hours(8) == pytest.approx(1e6 * 0.004 / 8 / 3600)
    assert "1.1 hours" not in "\n".join(gpu.lines())
    assert "67 minutes on 1 GPU, 8 minutes on 8 GPUs" in "\n".join(gpu.lines())
    assert "each with 4 cores beside it" in "\n".join(gpu.lines())
    content = json.loads(json.dumps(gpu.to_mapping()))
    assert content["hours"]["64"] == pytest.approx(gpu.hours(64))
    assert content["lc_bytes"] == {"value": 5.7e9, "low": 5.4e9, "high": 6.0e9}
    assert content["cores_a_gpu"] == 4


def test_png_and_jpeg_sources_have_the_same_size_as_jpeg(tmp_path: Path, model_dir: Path) -> None:
    """It is of the pixels that are encoded, not of the files as they come."""
    one = write_files(tmp_path / "one", {"1.png": png(1, 32, 32)})
    found = estimate_job(open_source(one), settings(model_dir, size=32))
    assert 0 < found.jpeg_bytes.value < 32 * 32 * 3
