"""Crops depend on (seed, index) alone, and broken images are recorded."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from train.config import DataConfig, TrainConfig
from train.data import (
    CropDataset,
    DataError,
    ShareSampler,
    draw_crop,
    find_training_images,
    make_loader,
    to_unit,
)


def test_a_crop_depends_on_seed_and_index_alone(photos: Path) -> None:
    config = DataConfig(folders=(str(photos),), crop_size=32)
    files = find_training_images(config)
    first, second = CropDataset(files, config, 3), CropDataset(files, config, 3)
    forwards = [first[i] for i in range(20)]
    backwards = [second[i] for i in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    other = CropDataset(files, config, 4)
    assert not all(torch.equal(other[i], forwards[i]) for i in range(20))


def test_every_image_is_seen_once_an_epoch(photos: Path) -> None:
    config = DataConfig(folders=(str(photos),), crop_size=32)
    dataset = CropDataset(find_training_images(config), config, 0)
    seen: list[int] = []
    dataset._read = lambda number: seen.append(number) or np.zeros((64, 64, 3), np.uint8)  # type: ignore[method-assign,func-returns-value]
    for index in range(12):
        dataset[index]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_processes_share_what_one_process_sees() -> None:
    def take(count: int, start: int, size: int, rank: int, processes: int) -> list[int]:
        return list(islice(ShareSampler(start, size, rank, processes), count))

    whole = take(16, 40, 8, 0, 1)
    parts = [take(8, 40, 4, rank, 2) for rank in range(2)]
    assert whole == list(range(40, 56))
    assert sorted(parts[0] + parts[1]) == whole
    assert sorted(parts[0][:4] + parts[1][:4]) == whole[:8]


def test_a_loader_starts_anywhere(photos: Path) -> None:
    config = DataConfig(folders=(str(photos),), crop_size=32)
    dataset = CropDataset(find_training_images(config), config, 0)
    from_start = list(islice(iter(make_loader(dataset, 0, 2, 0, 1)), 4))
    later = list(islice(iter(make_loader(dataset, 4, 2, 0, 1)), 2))
    assert torch.equal(from_start[2], later[0])
    assert torch.equal(from_start[3], later[1])


@pytest.mark.parametrize("shape", [(5, 7), (32, 32), (200, 40), (31, 90)])
def test_crops_have_their_size_whatever_the_image(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 77, np.uint8)
    config = DataConfig(folders=("x",), crop_size=32)
    for seed in range(20):
        crop = draw_crop(pixels, config, np.random.default_rng(seed))
        assert crop.shape == (32, 32, 3)
        assert (crop == 77).all()


def test_broken_images_are_recorded_and_replaced(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    config = DataConfig(folders=(str(photos), str(tmp_path)), crop_size=32)
    dataset = CropDataset(find_training_images(config), config, 0)
    for index in range(len(dataset.files)):
        assert dataset[index].shape == (3, 32, 32)
    assert [path.name for path in dataset.unreadable] == ["broken.png"]


def test_only_broken_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    config = DataConfig(folders=(str(tmp_path),))
    with pytest.raises(DataError, match="none of the 1 training images can be read"):
        CropDataset(find_training_images(config), config, 0)[0]


def test_exclusion(photos: Path, tmp_path: Path, make_config: Callable[..., TrainConfig]) -> None:
    (tmp_path / "held-out.txt").write_text("image1.png\nimage4.png\n")
    listing = str(tmp_path / "held-out.txt")
    config = make_config(data={"exclude": [listing]}).data
    assert [p.name for p in find_training_images(config)] == [f"image{i}.png" for i in (0, 2, 3, 5)]
    (tmp_path / "held-out.txt").write_text("other.png\n")
    with pytest.raises(DataError, match="none of the 1 names"):
        find_training_images(config)
    with pytest.raises(DataError, match="found no list of names"):
        find_training_images(make_config(data={"exclude": ["none.txt"]}).data)


def test_to_unit_spans_the_range() -> None:
    batch = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert to_unit(batch, torch.device("cpu")).flatten().tolist() == [-1.0, 1.0]
