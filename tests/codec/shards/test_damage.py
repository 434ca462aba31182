"""Indices, manifests and shards that are damaged or forged: a typed error, nothing else."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.errors import LatentCodecError
from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content, ShardForm
from codec.shards.index import read_index
from codec.shards.layout import index_name
from codec.shards.manifest import Manifest, finish_dataset
from codec.shards.reader import ShardReader, iter_records
from codec.shards.records import ItemError, RecordInfo
from tests.codec.shards.datasets import RAW_FORM, info_of, job_of, write_raw

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_raw(tmp_path, [6], errors=[ItemError("x.jpg", "x.jpg", "it is empty")])
    return tmp_path


def rewrite(path: Path, line: int, change: Change) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines()
    content = json.loads(lines[line])
    change(content)
    lines[line] = json.dumps(content).encode()
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))


def read_all(directory: Path) -> None:
    _, entries = read_index(directory / index_name(0))
    list(entries)
    for reader, record in iter_records(directory, 0):
        reader.read_raw(record)


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (0, lambda c: c.update(format="x"), "format 'x'"),
        (0, lambda c: c.update(version=2), "version 2.*update"),
        (0, lambda c: c.update(records=2**60), "records = "),
        (0, lambda c: c.update(records=8), "cut short|expected"),
        (0, lambda c: c.update(records=3), "'reason'|expected|field"),
        (0, lambda c: c.update(file="../../etc/passwd"), "file"),
        (0, lambda c: c.update(channels=1000), "expected .* bytes|found .* bytes"),
        (0, lambda c: c.update(more=1), "'more'.*update"),
        (2, lambda c: c.update(more=1), "'more'.*update"),
        (2, lambda c: c.update(offset=2**50), "record 'folder/0001.jpg'"),
        (2, lambda c: c.update(offset=-1), "offset = -1"),
        (2, lambda c: c.update(bytes=2**40), "bytes = "),
        (2, lambda c: c.update(grid=[2**19, 2**19]), "expected"),
        (2, lambda c: c.update(grid=[0, 5]), "grid = 0"),
        (2, lambda c: c.update(crc32=7), "checksum"),
        (2, lambda c: c.pop("key"), "key = None"),
        (2, lambda c: c.update(crop=[5, 5, 5, 9]), "not empty"),
        (2, lambda c: c.update(width=True), "width"),
        (7, lambda c: c.pop("reason"), "reason"),
    ],
)
def test_forged_indices(dataset: Path, line: int, change: Change, reason: str) -> None:
    rewrite(dataset / index_name(0), line, change)
    with pytest.raises(ShardError, match=reason):
        read_all(dataset)


def test_indices_that_are_cut_or_flipped_anywhere(dataset: Path) -> None:
    path = dataset / index_name(0)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        if rng.random() < 0.5:
            del data[rng.integers(len(data)) :]
        else:
            data[rng.integers(12, len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with pytest.raises(ShardError):
            read_all(dataset)


def test_an_index_of_endless_lines_is_not_read_whole(dataset: Path) -> None:
    with gzip.open(dataset / index_name(0), "wb", compresslevel=1) as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    with pytest.raises(ShardError, match="longer than"):
        read_all(dataset)


@pytest.mark.parametrize("container", list(Container))
def test_shards_that_are_cut_or_flipped(tmp_path: Path, container: Container) -> None:
    """Each damage of a record is found; damage elsewhere does no harm to what is read."""
    write_raw(tmp_path, [6], ShardForm(container, Content.FLOAT16), grids=[(6, 5), (4, 4)])
    header, _ = read_index(tmp_path / index_name(0))
    path = tmp_path / header.file_name
    whole = path.read_bytes()
    expected = [
        reader.read_raw(record).raw_latents.tolist() for reader, record in iter_records(tmp_path, 0)
    ]
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(100):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            found = [
                reader.read_raw(record).raw_latents.tolist()
                for reader, record in iter_records(tmp_path, 0)
            ]
        except LatentCodecError as error:
            messages.append(str(error))
        else:
            assert found == expected
    assert len(messages) > 30
    assert all(path.name in message for message in messages)


def test_a_shard_that_is_gone_is_an_error_of_the_system(dataset: Path) -> None:
    header, _ = read_index(dataset / index_name(0))
    (dataset / header.file_name).unlink()
    with pytest.raises(FileNotFoundError):
        ShardReader(dataset, header)


def test_records_say_what_they_were_made_of() -> None:
    plain = RecordInfo("a", "a", 30, 20, (0, 0, 30, 20), (30, 20))
    assert plain.to_json() == {"key": "a", "width": 30, "height": 20}
    for info in (plain, info_of(1), info_of(4), RecordInfo("a@1", "a", 9, 9, (1, 2, 3, 4), (8, 8))):
        assert RecordInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_manifests_come_back(dataset: Path) -> None:
    manifest = Manifest.read(dataset)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert (manifest.num_images, manifest.num_records, manifest.num_errors) == (6, 6, 1)
    assert manifest.preprocessing == {"size": 48}
    errors = [json.loads(line) for line in (dataset / "errors.jsonl").read_text().splitlines()]
    assert errors == [{"key": "x.jpg", "source": "x.jpg", "reason": "it is empty"}]


def test_labels_that_are_numbers_keep_their_order(dataset: Path) -> None:
    manifest = Manifest.read(dataset)
    assert manifest.label_ids() == {"class 0": 0, "class 1": 1, "class 2": 2}
    content = {**manifest.to_json(), "labels": {"10": 1, "9": 1, "0": 1}}
    assert Manifest.from_json(content).label_ids() == {"0": 0, "9": 1, "10": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(version=9), "version 9"),
        (lambda c: c.update(more=1), "'more'"),
        (lambda c: c.update(container="zip"), "container = 'zip'"),
        (lambda c: c["scaling"].update(scaling_factor=0), "scaling_factor = 0"),
        (lambda c: c["model"].update(latent_id="xyz"), "latent_id"),
        (lambda c: c["shards"][0].update(sha256="x"), "sha256"),
        (lambda c: c.update(grids={"x": 1}), "grid 'x'"),
        (lambda c: c.update(shards={}), "list of shards"),
    ],
)
def test_forged_manifests(dataset: Path, change: Change, reason: str) -> None:
    path = dataset / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match=rf"manifest\.json: .*{reason}"):
        Manifest.read(dataset)


def test_a_dataset_with_a_gap_or_of_another_form_is_not_finished(tmp_path: Path) -> None:
    write_raw(tmp_path, [3, 3, 3])
    job = job_of(RAW_FORM)
    with pytest.raises(ShardError, match=r"3 complete shards.*0 to 3"):
        finish_dataset(tmp_path, job, num_shards=4)
    with pytest.raises(ShardError, match="expected 0 as"):
        finish_dataset(tmp_path, job_of(ShardForm(content=Content.FLOAT16)))
    with pytest.raises(ShardError, match="4 channels, expected 8"):
        finish_dataset(tmp_path, {**job, "latent_channels": 8})
    (tmp_path / index_name(1)).unlink()
    with pytest.raises(ShardError, match="see shard 1"):
        finish_dataset(tmp_path, job)
    shutil.copy(tmp_path / index_name(0), tmp_path / index_name(1))
    with pytest.raises(ShardError, match="found shard 0"):
        finish_dataset(tmp_path, job)
