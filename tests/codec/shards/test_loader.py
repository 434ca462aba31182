"""LatentDataset: every record once, in an order that only seed and epoch decide; resumable."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content, ShardForm
from codec.shards.loader import LatentDataset
from codec.shards.reader import iter_records
from tests.codec.shards.datasets import SCALE, SHIFT, info_of, latents_of, write_lc, write_raw

COUNTS = (13, 0, 20, 7, 10)
TOTAL = sum(COUNTS)
GRIDS = ((6, 5), (4, 4), (8, 3))


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("raw")
    write_raw(directory, COUNTS)
    return directory


@pytest.fixture(scope="module")
def bucket_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("buckets")
    write_raw(directory, COUNTS, grids=GRIDS)
    return directory


@pytest.fixture(scope="module")
def parquet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parquet")
    write_raw(directory, COUNTS, ShardForm(Container.PARQUET, Content.FLOAT16, True))
    return directory


def batches(dataset: LatentDataset, workers: int = 0) -> Iterator[dict[str, Any]]:
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))


def keys(found: Any) -> list[str]:
    return [key for batch in found for key in batch["key"]]


def all_keys() -> set[str]:
    return {info_of(number).key for number in range(TOTAL)}


@pytest.mark.parametrize("place", ["raw_dir", "bucket_dir", "parquet_dir"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_record_comes_once(place: str, shuffle: bool, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(place)
    dataset = LatentDataset(directory, batch_size=4, shuffle=shuffle, drop_last=False, window=15)
    found = list(batches(dataset))
    assert sorted(keys(found)) == sorted(all_keys())
    assert len(found) == len(dataset)
    singles = list(LatentDataset(directory, shuffle=shuffle, window=15))
    assert sorted(sample["key"] for sample in singles) == sorted(all_keys())


def test_a_record_is_what_was_written(raw_dir: Path) -> None:
    raw = {sample["key"]: sample for sample in LatentDataset(raw_dir, raw=True)}
    dataset = LatentDataset(raw_dir)
    for sample in dataset:
        number = int(sample["key"][-8:-4])
        info = info_of(number)
        expected = torch.from_numpy(latents_of(number))
        torch.testing.assert_close(raw[info.key]["latents"], expected, rtol=0, atol=0)
        torch.testing.assert_close(sample["latents"], (expected - SHIFT) * SCALE)
        assert sample["label"] == info.label
        assert sample["label_id"] == number % 3
        assert sample["caption"] == (info.caption or "")
        assert sample["crop"].tolist() == list(info.crop)
        assert sample["original_size"].tolist() == [info.width, info.height]
        assert sample["flip"] == info.flip
    assert len(raw) == len(dataset) == TOTAL


def test_the_statistics_scale_to_zero_and_one(raw_dir: Path) -> None:
    dataset = LatentDataset(raw_dir, batch_size=TOTAL, scaling="statistics", drop_last=False)
    (batch,) = batches(dataset)
    values = batch["latents"].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        values.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0
    )
    deviations = values.std(1, correction=0)
    torch.testing.assert_close(deviations, torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_batch_is_its_records_together(bucket_dir: Path) -> None:
    singles = {sample["key"]: sample for sample in LatentDataset(bucket_dir)}
    for batch in batches(LatentDataset(bucket_dir, batch_size=4)):
        assert batch["latents"].shape[0] == 4
        for place, key in enumerate(batch["key"]):
            for name, value in singles[key].items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(batch[name][place], value)
                else:
                    assert batch[name][place] == value


def test_torch_collates_records(raw_dir: Path) -> None:
    batch = next(iter(DataLoader(LatentDataset(raw_dir), batch_size=5)))
    assert batch["latents"].shape == (5, 4, 6, 5)
    assert batch["crop"].shape == (5, 4)
    assert batch["label_id"].dtype == torch.int64
    assert len(batch["caption"]) == 5


def test_epochs_and_seeds_differ_and_repeat(raw_dir: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        dataset = LatentDataset(raw_dir, seed=seed)
        dataset.set_epoch(epoch)
        return [sample["key"] for sample in dataset]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert len({tuple(one) for one in orders}) == 3
    assert order(0, 1) == orders[1]
    unshuffled = [sample["key"] for sample in LatentDataset(raw_dir, shuffle=False)]
    assert unshuffled == sorted(all_keys())


def test_the_window_mixes_shards(raw_dir: Path) -> None:
    """Shards often hold one class each; the first records must not all come from one."""
    found = [sample["key"] for sample in islice(LatentDataset(raw_dir), 12)]
    shards = {np.searchsorted(np.cumsum(COUNTS), int(key[-8:-4]), "right") for key in found}
    assert len(shards) >= 3


@pytest.mark.parametrize("place", ["raw_dir", "bucket_dir", "parquet_dir"])
def test_the_number_of_workers_does_not_change_the_order(
    place: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(place)

    def order(workers: int) -> list[str]:
        return keys(batches(LatentDataset(directory, batch_size=4, drop_last=False), workers))

    assert order(0) == order(2)


def test_turns_of_the_loaders_batches_do_not_either(raw_dir: Path) -> None:
    def order(workers: int) -> list[str]:
        dataset = LatentDataset(raw_dir, turn_size=5)
        return keys(DataLoader(dataset, batch_size=5, num_workers=workers))

    assert order(0) == order(2)


@pytest.mark.parametrize("place", ["raw_dir", "bucket_dir", "parquet_dir"])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_a_run_goes_on_with_any_number_of_workers(
    place: str, before: int, after: int, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(place)

    def new() -> LatentDataset:
        dataset = LatentDataset(directory, batch_size=4, window=15, drop_last=False)
        dataset.set_epoch(3)
        return dataset

    whole = keys(batches(new()))
    begun = keys(islice(batches(new(), before), 6))
    resumed = new()
    resumed.set_epoch(3, consumed=24)
    assert begun + keys(batches(resumed, after)) == whole
    resumed.set_epoch(4)
    assert set(keys(batches(resumed, after))) == all_keys()


def test_a_run_goes_on_with_other_ranks_and_batches(raw_dir: Path) -> None:
    def of(rank: int, world_size: int, batch_size: int, consumed: int = 0) -> LatentDataset:
        dataset = LatentDataset(
            raw_dir, batch_size=batch_size, rank=rank, world_size=world_size, window=15
        )
        dataset.set_epoch(1, consumed)
        return dataset

    whole = keys(batches(of(0, 1, 1)))
    begun = [keys(islice(batches(of(rank, 2, 4)), 3)) for rank in range(2)]
    assert set(begun[0] + begun[1]) == set(whole[:24])
    assert keys(batches(of(0, 1, 2, consumed=24))) == whole[24:]


def test_ranks_get_equal_shares_that_do_not_overlap(bucket_dir: Path) -> None:
    shares = []
    for rank in range(3):
        dataset = LatentDataset(bucket_dir, batch_size=3, rank=rank, world_size=3)
        found = list(batches(dataset))
        assert len(found) == len(dataset)
        shares.append(keys(found))
    assert len({len(share) for share in shares}) == 1
    together = [key for share in shares for key in share]
    assert len(together) == len(set(together)) > TOTAL - 18


def test_ranks_come_from_the_environment(raw_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = LatentDataset(raw_dir, batch_size=4, rank=1, world_size=2)
    assert keys(LatentDataset(raw_dir, batch_size=4)) == keys(given)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("stop", [1, 7, 9])
def test_state_dicts_without_workers(raw_dir: Path, batch_size: int | None, stop: int) -> None:
    def all_of(found: Any) -> list[str]:
        return keys(found) if batch_size else [sample["key"] for sample in found]

    whole = all_of(LatentDataset(raw_dir, batch_size=batch_size, drop_last=False))
    dataset = LatentDataset(raw_dir, batch_size=batch_size, drop_last=False)
    iterator = iter(dataset)
    begun = all_of(islice(iterator, stop))
    state = dataset.state_dict()
    resumed = LatentDataset(raw_dir, batch_size=batch_size, drop_last=False)
    resumed.load_state_dict(state)
    assert begun + all_of(resumed) == whole
    if batch_size:  # and in workers, which take over from the main process
        resumed = LatentDataset(raw_dir, batch_size=batch_size, drop_last=False)
        resumed.load_state_dict(state)
        assert begun + keys(batches(resumed, 2)) == whole


def test_state_dicts_of_workers(raw_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchdata's StatefulDataLoader does in each worker: state after a record, and back."""

    class Info:
        num_workers = 3

        def __init__(self, number: int) -> None:
            self.id = number

    for worker in range(3):
        monkeypatch.setattr("codec.shards.loader.get_worker_info", lambda w=worker: Info(w))
        whole = [sample["key"] for sample in LatentDataset(raw_dir, turn_size=3)]
        dataset = LatentDataset(raw_dir, turn_size=3)
        begun = [sample["key"] for sample in islice(iter(dataset), 8)]
        resumed = LatentDataset(raw_dir, turn_size=3)
        resumed.load_state_dict(dataset.state_dict())
        assert begun + [sample["key"] for sample in resumed] == whole
    monkeypatch.setattr("codec.shards.loader.get_worker_info", lambda: None)
    resumed = LatentDataset(raw_dir, turn_size=3)
    resumed.load_state_dict(dataset.state_dict())
    with pytest.raises(ShardError, match="one of 3 workers"):
        list(resumed)


def test_posterior_samples_differ_by_epoch_alone(parquet_dir: Path) -> None:
    def latents(epoch: int, workers: int = 0) -> torch.Tensor:
        dataset = LatentDataset(
            parquet_dir, batch_size=10, sample_posterior=True, raw=True, shuffle=False
        )
        dataset.set_epoch(epoch)
        return torch.cat([batch["latents"] for batch in batches(dataset, workers)])

    mode = torch.cat(
        [
            b["latents"]
            for b in batches(LatentDataset(parquet_dir, batch_size=10, raw=True, shuffle=False))
        ]
    )
    first = latents(0)
    assert torch.equal(first, latents(0, 2))
    assert not torch.equal(first, latents(1))
    deviation = torch.exp(0.5 * mode / 10)  # `write_raw` gives a tenth of the mode
    noise = (first - mode) / deviation
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1


@pytest.mark.parametrize("container", list(Container))
def test_files_are_decoded_without_the_network(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, container: Container
) -> None:
    from codec import backbone

    write_lc(tmp_path, model_dir, [9, 6], container, grids=[(6, 5), (8, 8)])
    monkeypatch.setattr(backbone, "load_autoencoder", None)
    found = list(batches(LatentDataset(tmp_path, batch_size=4, raw=True, model=str(model_dir))))
    assert len(keys(found)) == 12
    for batch in found:
        for place, key in enumerate(batch["key"]):
            grid = tuple(batch["latents"].shape[2:])
            expected = latents_of(int(key[-8:-4]), grid)
            assert np.abs(batch["latents"][place].numpy() - expected).max() < 0.5
    files = list(batches(LatentDataset(tmp_path, batch_size=4, decode=False)))
    assert all(body[:4] == b"\x89LC\n" for batch in files for body in batch["lc"])


def test_damage_names_file_and_key(tmp_path: Path, model_dir: Path) -> None:
    write_lc(tmp_path, model_dir, [9])
    _, record = list(iter_records(tmp_path, 0))[5]
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[record.location.offset + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"shard-000000\.tar.*'{record.info.key}'"):
        list(LatentDataset(tmp_path, model=str(model_dir)))


def test_what_does_not_fit_is_refused(raw_dir: Path, bucket_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no manifest"):
        LatentDataset(tmp_path)
    with pytest.raises(ShardError, match="without a posterior"):
        LatentDataset(raw_dir, sample_posterior=True)
    with pytest.raises(ShardError, match="decode is False"):
        LatentDataset(raw_dir, decode=False)
    with pytest.raises(ShardError, match="rank 2 of 2"):
        LatentDataset(raw_dir, rank=2, world_size=2)
    with pytest.raises(ShardError, match="both or neither"):
        LatentDataset(raw_dir, rank=0)
    dataset = LatentDataset(bucket_dir, batch_size=4)
    dataset.set_epoch(0, consumed=6)
    with pytest.raises(ShardError, match="multiple of 4"):
        next(iter(dataset))
    with pytest.raises(ShardError, match="version"):
        dataset.load_state_dict({"epoch": 0})
