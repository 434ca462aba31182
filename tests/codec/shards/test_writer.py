"""Shards: what goes in comes out, in every form; small overhead; whole or not at all."""

import errno
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from codec.shards import writer as writer_module
from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content, LatentData, ShardForm
from codec.shards.index import IndexedRecord, iter_errors, read_header, read_index
from codec.shards.layout import committed_shards, index_name, remove_leftovers
from codec.shards.reader import ShardReader, iter_records
from codec.shards.records import ItemError, RecordInfo
from codec.shards.writer import ShardWriter
from tests.codec.shards.datasets import CHANNELS, info_of, latents_of, write_raw

RAW_FORMS = [
    ShardForm(container, content, posterior)
    for container in Container
    for content in (Content.FLOAT16, Content.FLOAT32)
    for posterior in (False, True)
]


@pytest.mark.parametrize("form", RAW_FORMS, ids=str)
def test_raw_latents_come_back_with_what_is_known_of_them(tmp_path: Path, form: ShardForm) -> None:
    grids = [(6, 5), (3, 8), (6, 5)]
    write_raw(tmp_path, [11], form, grids=grids)
    found = list(iter_records(tmp_path, 0))
    assert len(found) == 11
    with ShardReader(tmp_path, read_header(tmp_path / index_name(0))) as reader:
        for number, (_, record) in enumerate(found):
            grid = grids[number % 3]
            expected = latents_of(number, grid).astype(form.dtype).astype(np.float32)
            raw = reader.read_raw(record)
            np.testing.assert_array_equal(raw.raw_latents, expected)
            assert record.info == info_of(number, grid)
            if form.posterior:
                spread = (latents_of(number, grid) / 10).astype(form.dtype).astype(np.float32)
                assert raw.log_variance is not None
                np.testing.assert_array_equal(raw.log_variance, spread)
            else:
                assert raw.log_variance is None


@pytest.mark.parametrize("container", list(Container))
def test_files_come_back_as_bytes(tmp_path: Path, container: Container) -> None:
    bodies = [os.urandom(100 + 7 * number) for number in range(9)]
    with ShardWriter(tmp_path, 3, ShardForm(container), records_per_member=4) as writer:
        for number, body in enumerate(bodies):
            writer.add(info_of(number), LatentData(latents_of(number), body))
        writer.commit()
    assert [reader.read_body(record) for reader, record in iter_records(tmp_path, 3)] == bodies


@pytest.mark.parametrize("container", list(Container))
def test_small_records_are_not_drowned(tmp_path: Path, container: Container) -> None:
    """Files of 1.5 kB under names as photographs have: at most a tenth more, index included."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path, 0, ShardForm(container)) as writer:
        for number in range(1024):
            key = f"n{rng.integers(10**8):08d}/n{number // 50:08d}_{rng.integers(10**5)}.JPEG"
            crop = (int(rng.integers(100)), 0, int(rng.integers(300, 500)), 375)
            info = RecordInfo(key, key, 500, 375, crop, (256, 256), label=f"n{number // 50:08d}")
            writer.add(info, LatentData(latents_of(number, (8, 8)), rng.bytes(1500)))
        header = writer.commit()
    index_bytes = (tmp_path / index_name(0)).stat().st_size
    assert header.payload_bytes == 1024 * 1500
    assert header.size_bytes + index_bytes <= 1.1 * header.payload_bytes


@pytest.mark.parametrize(
    "form", [*RAW_FORMS, ShardForm(Container.TAR), ShardForm(Container.PARQUET)]
)
def test_equal_records_give_equal_bytes(tmp_path: Path, form: ShardForm) -> None:
    contents = []
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        with ShardWriter(place, 0, form, records_per_member=4) as writer:
            for number in range(6):
                latents = latents_of(number)
                payload = bytes([number]) * 50 if form.content is Content.LC else None
                writer.add(info_of(number), LatentData(latents, payload, latents))
            writer.commit([ItemError("k", "s", "gone")])
        contents.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2


def test_a_tar_is_one_for_everybody(tmp_path: Path) -> None:
    write_raw(tmp_path, [10], grids=[(6, 5), (4, 4)])
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        names = archive.getnames()
        assert names == [f"{number:06d}.safetensors" for number in range(3)]
        member = archive.extractfile(names[0])
        assert member is not None
        tensors = safetensors.numpy.load(member.read())
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "0000004x0000004.latents": (2, CHANNELS, 4, 4),
        "0000006x0000005.latents": (2, CHANNELS, 6, 5),
    }
    np.testing.assert_array_equal(tensors["0000006x0000005.latents"][1], latents_of(2))


def test_members_of_one_record_are_samples_of_their_own(tmp_path: Path) -> None:
    write_raw(
        tmp_path, [2], ShardForm(content=Content.FLOAT32, posterior=True), records_per_member=1
    )
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        assert archive.getnames() == [
            f"000000-00000{number}.{suffix}"
            for number in range(2)
            for suffix in ("safetensors", "json")
        ]
        member = archive.extractfile("000000-000001.safetensors")
        assert member is not None
        assert safetensors.numpy.load(member.read())["moments"].shape == (2 * CHANNELS, 6, 5)
    for number, (reader, record) in enumerate(iter_records(tmp_path, 0)):
        np.testing.assert_array_equal(reader.read_raw(record).raw_latents, latents_of(number))


def test_errors_and_counts_stand_in_the_index(tmp_path: Path) -> None:
    errors = [
        ItemError("a.jpg", "a.jpg", "it is empty"),
        ItemError("b\udcff.jpg", "b", "truncated"),
    ]
    write_raw(tmp_path, [5], errors=errors)
    header, entries = read_index(tmp_path / index_name(0))
    assert (header.num_images, header.num_records, header.num_errors) == (5, 5, 2)
    assert header.labels == {"class 0": 2, "class 1": 2, "class 2": 1}
    assert header.grids == {(6, 5): 5}
    assert header.num_captions == 3
    assert [isinstance(entry, IndexedRecord) for entry in entries] == [True] * 5 + [False] * 2
    assert list(iter_errors(tmp_path / index_name(0))) == errors


def test_a_unit_without_any_record_has_an_index_too(tmp_path: Path) -> None:
    for container in Container:
        with ShardWriter(tmp_path, 0, ShardForm(container, Content.FLOAT16)) as writer:
            header = writer.commit([ItemError("a", "a", "gone")])
        assert header.num_records == header.channels == 0
        assert list(iter_records(tmp_path, 0)) == []


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 0, ShardForm(content=Content.FLOAT16)) as writer:
        writer.add(info_of(0), LatentData(latents_of(0)))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """Stands for a file on a disk that takes `room` bytes."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream, self._room = stream, room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize("container", list(Container))
@pytest.mark.parametrize("room", [0, 700, 5000])
def test_a_full_disk_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: Container, room: int
) -> None:
    """In the middle of records, and at the very end; afterwards the same shard can be written."""
    form = ShardForm(container, Content.FLOAT32)
    real = writer_module.HashingStream

    def full(stream: Any) -> Any:
        return real(FullDisk(stream, room))  # type: ignore[arg-type]

    def write() -> None:
        with ShardWriter(tmp_path, 0, form, records_per_member=4) as writer:
            for number in range(20):
                writer.add(info_of(number), LatentData(latents_of(number)))
            writer.commit()

    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "HashingStream", full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            write()
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    write()
    assert committed_shards(tmp_path) == [0]


def test_a_disk_that_is_full_for_the_index_leaves_the_shard_uncommitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer_module, "write_index", refuse)
    with ShardWriter(tmp_path, 0, ShardForm(content=Content.FLOAT16)) as writer:
        writer.add(info_of(0), LatentData(latents_of(0)))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            writer.commit()
    assert committed_shards(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_closing_a_file_on_a_full_disk_does_not_hide_the_error(tmp_path: Path) -> None:
    """What is buffered is refused when it is flushed, and again when the file is closed."""
    with ShardWriter(tmp_path, 0, ShardForm(content=Content.FLOAT16)) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "wb")  # noqa: SIM115 - the writer closes it
        writer._stream._stream = writer._file
        writer.add(info_of(0), LatentData(latents_of(0)))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 0, ShardForm(content=Content.FLOAT16))
    writer._file.close()
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_stored_is_refused_and_the_shard_goes_on(tmp_path: Path) -> None:
    wrong = {
        "twice": (info_of(0), LatentData(latents_of(0))),
        "finite": (info_of(1), LatentData(np.full((CHANNELS, 6, 5), np.nan, np.float32))),
        "65504|use float32": (info_of(1), LatentData(np.full((CHANNELS, 6, 5), 1e5, np.float32))),
        "shape": (info_of(1), LatentData(latents_of(1)[0])),
        "channels": (info_of(1), LatentData(latents_of(1)[:3])),
    }
    with ShardWriter(tmp_path, 0, ShardForm(content=Content.FLOAT16)) as writer:
        writer.add(info_of(0), LatentData(latents_of(0)))
        for reason, (info, data) in wrong.items():
            with pytest.raises(ShardError, match=reason):
                writer.add(info, data)
        writer.add(info_of(2), LatentData(latents_of(2)))
        assert writer.commit().num_records == 2
    assert [record.info for _, record in iter_records(tmp_path, 0)] == [info_of(0), info_of(2)]


def test_a_posterior_needs_numbers() -> None:
    with pytest.raises(ShardError, match="log variance"):
        ShardForm(posterior=True)
