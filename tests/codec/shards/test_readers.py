"""Datasets are read by plain webdataset and by Hugging Face's datasets, and exported for others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from codec.shards.decoding import LatentDecoder
from codec.shards.errors import ShardError
from codec.shards.export import export_npy
from codec.shards.forms import Container, Content, ShardForm
from codec.shards.layout import index_name
from codec.shards.reader import iter_records
from codec.shards.webdataset import records
from tests.codec.shards.datasets import (
    CHANNELS,
    SCALE,
    SHIFT,
    info_of,
    latents_of,
    write_lc,
    write_raw,
)

# webdataset leaves the files that it read to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def read_tars(directory: Path) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).compose(records))


@pytest.mark.parametrize("posterior", [False, True])
def test_webdataset_reads_numbers(tmp_path: Path, posterior: bool) -> None:
    grids = [(6, 5), (4, 4)]
    form = ShardForm(content=Content.FLOAT32, posterior=posterior)
    write_raw(tmp_path, [7, 5], form, grids=grids)
    found = read_tars(tmp_path)
    assert len(found) == 12
    for number, sample in enumerate(found):
        expected = latents_of(number, grids[number % 2])
        assert sample["__key__"] == info_of(number).key
        assert sample["json"] == info_of(number, grids[number % 2]).to_json()
        np.testing.assert_array_equal(sample["latents"], expected)
        if posterior:
            np.testing.assert_array_equal(sample["log_variance"], expected / 10)


def test_webdataset_reads_files(tmp_path: Path, model_dir: Path) -> None:
    write_lc(tmp_path, model_dir, [7])
    bodies = [sample["lc"] for sample in read_tars(tmp_path)]
    assert bodies == [reader.read_body(record) for reader, record in iter_records(tmp_path, 0)]
    latents = LatentDecoder(CHANNELS, 8, str(model_dir)).decode(bodies)
    assert max(np.abs(one - latents_of(n)).max() for n, one in enumerate(latents)) < 0.5


def test_webdataset_opens_the_index_of_a_pipe(tmp_path: Path) -> None:
    write_raw(tmp_path, [5])
    url = f"pipe:cat {tmp_path}/shard-000000.tar"
    dataset = webdataset.WebDataset([url], shardshuffle=False).compose(records)
    assert [sample["__key__"] for sample in dataset] == [info_of(n).key for n in range(5)]


def test_webdataset_finds_damage_and_a_missing_index(tmp_path: Path) -> None:
    write_raw(tmp_path, [5])
    path = tmp_path / "shard-000000.tar"
    _, record = list(iter_records(tmp_path, 0))[1]
    data = bytearray(path.read_bytes())
    data[record.location.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"folder/0001\.jpg.*checksum"):
        read_tars(tmp_path)
    (tmp_path / index_name(0)).unlink()
    with pytest.raises(ShardError, match="no index"):
        read_tars(tmp_path)


def test_members_of_one_record_need_no_index(tmp_path: Path) -> None:
    write_raw(tmp_path, [3], records_per_member=1)
    (tmp_path / index_name(0)).unlink()
    found = read_tars(tmp_path)
    assert [json.loads(sample["json"])["key"] for sample in found] == [
        info_of(n).key for n in range(3)
    ]
    assert all(sample["safetensors"] for sample in found)


@pytest.mark.parametrize("content", [Content.FLOAT16, Content.FLOAT32])
def test_hugging_face_reads_numbers(tmp_path: Path, content: Content) -> None:
    datasets = pytest.importorskip("datasets")
    form = ShardForm(Container.PARQUET, content, posterior=True)
    write_raw(tmp_path / "set", [5, 3], form)
    found = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "set" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(found) == 8
    for number, row in enumerate(found.with_format("numpy")):
        expected = latents_of(number).astype(form.dtype)
        assert row["latents"].shape == (CHANNELS, 6, 5)
        np.testing.assert_array_equal(row["latents"].astype(form.dtype), expected)
        np.testing.assert_array_equal(
            row["log_variance"].astype(form.dtype), (latents_of(number) / 10).astype(form.dtype)
        )
        assert row["key"] == info_of(number).key
        assert list(row["crop"]) == list(info_of(number).crop)
        assert row["caption"] == info_of(number).caption


def test_npy_files_with_labels(tmp_path: Path) -> None:
    write_raw(tmp_path / "set", [3, 4])
    assert export_npy(tmp_path / "set", tmp_path / "npy") == 7
    content = json.loads((tmp_path / "npy" / "dataset.json").read_bytes())
    assert content["labels"] == [[f"00000/img{n:08d}.npy", n % 3] for n in range(7)]
    for number, (name, _) in enumerate(content["labels"]):
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / name), latents_of(number))
    with pytest.raises(ShardError, match="empty folder"):
        export_npy(tmp_path / "set", tmp_path / "npy")


def test_npy_files_of_mean_and_deviation(tmp_path: Path) -> None:
    form = ShardForm(content=Content.FLOAT32, posterior=True)
    write_raw(tmp_path / "set", [2], form)
    export_npy(tmp_path / "set", tmp_path / "npy", scaled=True)
    found = np.load(tmp_path / "npy" / "00000" / "img-mean-std-00000001.npy")
    expected = latents_of(1)
    np.testing.assert_allclose(found[:CHANNELS], (expected - SHIFT) * SCALE, rtol=1e-6)
    np.testing.assert_allclose(found[CHANNELS:], np.exp(0.05 * expected) * SCALE, rtol=1e-5)
