"""Crops depend on (seed, index) alone, however they are loaded, and broken images are recorded."""

import io
import pickle
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec.images import Pixels
from train.data import Batch, CropDataset, to_unit
from train.samples.crops import cut, cut_tensor, draw_box
from train.samples.loader import CropLoader, DeviceLoader, ShareSampler, make_loader
from train.samples.pool import open_sources
from train.samples.sources import DataError
from train.sections import DataConfig


@pytest.fixture
def make_dataset(photos: Path) -> Callable[..., CropDataset]:
    """Makes a dataset of the six photos; `make_dataset(seed=3, cache="none")` changes settings."""

    def make(seed: int = 0, **settings: Any) -> CropDataset:
        config = DataConfig(**{"folders": (str(photos),), "crop_size": 32} | settings)
        return CropDataset(open_sources(config), config, seed)

    return make


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with an image that cannot be read."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torn.png").write_bytes(b"\x89PNG not really")
    return tmp_path / "broken"


def take(loader: CropLoader | DeviceLoader, count: int) -> Batch:
    """The first batches of a loader, as one."""
    return Batch(*map(torch.cat, zip(*islice(loader, count), strict=True)))


def assert_same(a: Batch, b: Batch) -> None:
    assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_a_crop_depends_on_seed_and_index_alone(make_dataset: Callable[..., CropDataset]) -> None:
    first, second = make_dataset(3), make_dataset(3)
    forwards = [first[i] for i in range(20)]
    backwards = [second[i] for i in reversed(range(20))][::-1]
    for (a, *numbers), (b, *others) in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
        assert numbers == others
    other = make_dataset(4)
    assert any((other[i][0] != forwards[i][0]).any() for i in range(20))


def test_every_image_is_seen_once_an_epoch(make_dataset: Callable[..., CropDataset]) -> None:
    dataset = make_dataset()
    seen = [dataset.image_number(index) for index in range(12)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_processes_share_what_one_process_sees() -> None:
    def numbers(count: int, start: int, size: int, rank: int, processes: int) -> list[list[int]]:
        return list(map(list, islice(ShareSampler(start, size, rank, processes), count)))

    whole = numbers(2, 40, 8, 0, 1)
    parts = [numbers(2, 40, 4, rank, 2) for rank in range(2)]
    assert whole == [list(range(40, 48)), list(range(48, 56))]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_samples_do_not_depend_on_processes_or_batches(
    make_dataset: Callable[..., CropDataset],
) -> None:
    whole = take(make_loader(make_dataset(), 0, 8, 0, 1), 2)
    parts = [take(make_loader(make_dataset(), 0, 2, rank, 2), 4) for rank in range(2)]
    joined = Batch(*map(torch.cat, zip(*parts, strict=True)))
    order = joined.indices.argsort()
    assert_same(whole, Batch(*(part[order] for part in joined)))
    assert whole.pixels.dtype == torch.uint8
    assert whole.pixels.shape == (16, 3, 32, 32)
    assert whole.labels.tolist() == [-1] * 16


@pytest.mark.parametrize("cache", ["none", "memory", "device"])
def test_a_loader_starts_anywhere(make_dataset: Callable[..., CropDataset], cache: str) -> None:
    whole = take(make_loader(make_dataset(cache=cache), 0, 2, 0, 1), 8)
    later = take(make_loader(make_dataset(cache=cache), 10, 2, 0, 1), 3)
    assert_same(later, Batch(*(part[10:] for part in whole)))
    assert whole.indices.tolist() == list(range(16))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_loader_processes_change_nothing_and_report_what_they_cannot_read(
    make_dataset: Callable[..., CropDataset], photos: Path, broken: Path
) -> None:
    folders = (str(photos), str(broken))
    plain = make_dataset(folders=folders, labels=True)
    shared = make_dataset(folders=folders, labels=True, num_workers=2)
    state = torch.get_rng_state()
    assert_same(take(make_loader(shared, 3, 4, 0, 1), 4), take(make_loader(plain, 3, 4, 0, 1), 4))
    assert torch.equal(state, torch.get_rng_state())
    assert shared.unreadable == plain.unreadable
    assert list(plain.unreadable) == [f"{broken.as_posix()}/torn.png"]
    hopeless = make_dataset(folders=(str(broken),), num_workers=1)
    with pytest.raises(DataError, match=r"^none of the 1 training images can be read"):
        take(make_loader(hopeless, 0, 1, 0, 1), 1)


def test_broken_images_are_replaced_by_the_next(
    make_dataset: Callable[..., CropDataset], photos: Path, broken: Path
) -> None:
    dataset = make_dataset(folders=(str(photos), str(broken)), labels=True)
    bad = next(i for i in range(7) if dataset.pool.key(i).endswith("torn.png"))
    assert dataset.classes == tuple(sorted((photos.name, "broken")))
    labels = [dataset[index][1] for index in range(14)]
    assert set(labels) == {dataset.classes.index(photos.name)}
    assert dataset.read(bad)[0] == (bad + 1) % 7
    assert "header is damaged" in dataset.unreadable[dataset.pool.key(bad)]


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_only_broken_images_are_an_error(
    make_dataset: Callable[..., CropDataset], broken: Path, cache: str
) -> None:
    dataset = make_dataset(folders=(str(broken),), cache=cache)
    with pytest.raises(DataError, match=r"none of the 1 training images can be read; .*torn\.png"):
        take(make_loader(dataset, 0, 1, 0, 1), 1)


def test_the_source_of_an_image_does_not_matter(
    make_dataset: Callable[..., CropDataset], photos: Path, tmp_path: Path
) -> None:
    files = sorted(photos.glob("*.png"))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for path in files:
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            archive.addfile(entry, io.BytesIO(path.read_bytes()))
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    plain = take(make_loader(make_dataset(5), 0, 4, 0, 1), 3)
    for settings in (
        {"webdataset": (str(tmp_path / "photos.tar"),)},
        {"lists": (str(tmp_path / "list.txt"),)},
    ):
        dataset = make_dataset(5, folders=(), **settings)
        assert_same(take(make_loader(dataset, 0, 4, 0, 1), 3), plain)


def test_decoded_images_are_kept_within_their_limit(
    make_dataset: Callable[..., CropDataset],
) -> None:
    def decoded(**settings: Any) -> int:
        dataset = make_dataset(**settings)
        loaded: list[int] = []
        load = dataset.pool.load
        dataset.pool.load = lambda i: loaded.append(i) or load(i)  # type: ignore[method-assign,func-returns-value]
        for index in range(24):
            dataset[index]
        return len(loaded)

    one = 48 * 64 * 3 / 2**30  # the smallest image
    assert decoded() == 6
    assert decoded(cache="none") == decoded(cache_gib=0.0) == 24
    assert 6 < decoded(cache_gib=3 * one) < decoded(cache_gib=3 * one, num_workers=2) < 24
    dataset = make_dataset()
    empty = len(pickle.dumps(dataset))
    dataset[0]
    assert len(pickle.dumps(dataset)) < empty + 1000


@pytest.mark.parametrize("shape", [(5, 7), (32, 32), (200, 40), (31, 90)])
def test_crops_have_their_size_whatever_the_image(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 77, np.uint8)
    config = DataConfig(crop_size=32)
    for seed in range(20):
        box = draw_box(*shape, config, np.random.default_rng(seed))
        crop = cut(pixels, box, 32)
        assert crop.shape == (32, 32, 3)
        assert (crop == 77).all()


def test_cutting_on_a_device_equals_cutting_in_memory(pixels: Callable[..., Pixels]) -> None:
    image = pixels(150, 110)
    config, worst, errors = DataConfig(crop_size=64), 0, []
    for shape in ((150, 110), (40, 110)):
        part = image[: shape[0]]
        for seed in range(20):
            box = draw_box(*shape, config, np.random.default_rng(seed))
            expected = cut(part, box, 64).astype(int)
            crop = cut_tensor(torch.from_numpy(part).permute(2, 0, 1), box, 64)
            assert crop.dtype == torch.uint8
            difference = np.abs(crop.permute(1, 2, 0).numpy() - expected)
            worst, errors = max(worst, difference.max()), [*errors, difference.mean()]
    assert worst <= 1
    assert max(errors) < 0.01


def test_the_device_loader_gives_the_crops_of_the_others(
    make_dataset: Callable[..., CropDataset], photos: Path, broken: Path
) -> None:
    folders = (str(photos), str(broken))
    dataset = make_dataset(folders=folders, cache="device", labels=True)
    loader = make_loader(dataset, 2, 4, 0, 1)
    assert isinstance(loader, DeviceLoader)
    assert list(dataset.unreadable) == [f"{broken.as_posix()}/torn.png"]
    kept = take(loader, 5)
    plain = take(make_loader(make_dataset(folders=folders, labels=True), 2, 4, 0, 1), 5)
    assert torch.equal(kept.labels, plain.labels)
    assert torch.equal(kept.indices, plain.indices)
    difference = (kept.pixels.int() - plain.pixels.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01
    exact = make_dataset(cache="device", min_scale=1.0)  # nothing is scaled
    unscaled = take(make_loader(make_dataset(min_scale=1.0), 0, 4, 0, 1), 3)
    assert_same(take(make_loader(exact, 0, 4, 0, 1), 3), unscaled)


def test_images_that_do_not_fit_on_the_device_are_announced(
    make_dataset: Callable[..., CropDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(cache="device", cache_gib=1e-5)
    loader = make_loader(dataset, 0, 2, 0, 1)
    assert isinstance(loader, CropLoader)
    message = capsys.readouterr().err
    assert message.count("warning: the 6 training images do not fit in data.cache_gib=1e-05") == 1
    assert_same(take(loader, 2), take(make_loader(make_dataset(), 0, 2, 0, 1), 2))


def test_rendered_factors_are_neither_mirrored_nor_scaled(
    make_dataset: Callable[..., CropDataset],
) -> None:
    dataset = make_dataset(folders=(), factors=6, labels=True)
    for index in range(12):
        crop, label, _ = dataset[index]
        image = dataset.image_number(index)
        np.testing.assert_array_equal(crop, dataset.pool.load(image))
        assert label == dataset.pool.label(image)


def test_to_unit_spans_the_range() -> None:
    batch = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert to_unit(batch, torch.device("cpu")).flatten().tolist() == [-1.0, 1.0]
