"""Dataset jobs from beginning to end, in one process: what comes out, and what is refused."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from codec import Codec
from codec.dataset import pieces, running
from codec.dataset.coding import RawCoding
from codec.dataset.engines import Running
from codec.dataset.job import JobError, JobSettings
from codec.dataset.lock import BusyError, lock_dataset
from codec.dataset.plan import SourceChangedError
from codec.dataset.preprocess import Preprocessing
from codec.dataset.running import FullDiskError, TooManyErrors
from codec.shards.forms import Container, Content, LatentData, ShardForm
from codec.shards.layout import committed_shards
from codec.shards.manifest import Manifest
from codec.shards.reader import iter_records
from codec.shards.verify import verify
from codec.shards.writer import ShardWriter
from tests.codec.dataset.jobs import (
    digests,
    keys_and_errors,
    make_dataset,
    serial,
    settings_of,
    write_images,
)
from tests.codec.foreign_models import save_model

__all__ = ["serial"]  # a fixture

pytestmark = pytest.mark.usefixtures("serial")

RAW = ShardForm(Container.TAR, Content.FLOAT32)


def bodies(directory: Path) -> dict[str, bytes]:
    """The bytes of every record, by key."""
    return {
        record.info.key: reader.read_body(record)
        for shard in committed_shards(directory)
        for reader, record in iter_records(directory, shard)
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Fifteen images in two classes, one of them cut short: three shards of six and less."""
    return write_images(tmp_path / "images", 15, broken=(4,))


def test_every_image_is_in_the_shards_or_in_the_errors(
    source: Path, tmp_path: Path, model_dir: Path
) -> None:
    manifest = make_dataset(source, tmp_path / "d", settings_of(model_dir)).manifest
    names = [f"{kind}/{n:04d}.png" for kind in ("cats", "dogs") for n in range(15)]
    expected = [name for name in names if (source / name).exists()]
    keys, errors = keys_and_errors(tmp_path / "d")
    assert errors == ["cats/0004.png"]
    assert keys == [name for name in expected if name not in errors]
    assert (manifest.num_images, manifest.num_records, manifest.num_errors) == (14, 14, 1)
    assert dict(manifest.labels or {}) == {"cats": 7, "dogs": 7}
    lines = (tmp_path / "d" / "errors.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["key"] == "cats/0004.png"
    assert "truncated" in json.loads(lines[0])["reason"]
    left = {path.name for path in (tmp_path / "d").iterdir() if path.name.startswith(".")}
    assert left == set(), "nothing is left of the plan, the lock and temporary files"


def test_records_are_the_files_that_the_codec_makes(
    source: Path, tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_of(model_dir, preprocessing=Preprocessing())
    make_dataset(source, tmp_path / "d", settings)
    codec = Codec.from_pretrained(model_dir, device="cpu", dtype="float32")
    found = bodies(tmp_path / "d")
    assert len(found) == 14
    for key in list(found)[::5]:
        assert found[key] == codec.compress(source / key)


@pytest.mark.parametrize("name", ["kl", "vq2", "fsq", "vqmodel"])
def test_any_autoencoder(name: str, source: Path, tmp_path: Path) -> None:
    directory = save_model(name, tmp_path)
    manifest = make_dataset(source, tmp_path / "d", settings_of(directory)).manifest
    assert manifest.num_records == 14
    codec = Codec.from_pretrained(directory, device="cpu", dtype="float32")
    for body in list(bodies(tmp_path / "d").values())[::6]:
        assert codec.unpack(body).shape[:2] == (1, manifest.latent_channels)
    assert verify(tmp_path / "d", model=str(directory), everything=True).problems == ()


def test_copies_are_named_and_mirrored(source: Path, tmp_path: Path, model_dir: Path) -> None:
    wishes = Preprocessing(size=32, crops=2, crop_mode="random", flip=True)
    manifest = make_dataset(
        source, tmp_path / "d", settings_of(model_dir, preprocessing=wishes)
    ).manifest
    keys, _ = keys_and_errors(tmp_path / "d")
    assert keys[:4] == [f"cats/0000.png{end}" for end in ("", "@flip", "@1", "@1@flip")]
    assert (manifest.num_images, manifest.num_records) == (14, 56)


def test_buckets_and_a_posterior_in_parquet(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    form = ShardForm(Container.PARQUET, Content.FLOAT16, posterior=True)
    wishes = Preprocessing(size=64, buckets=True, bucket_multiple=16)
    settings = settings_of(save_model("kl", tmp_path), form=form, preprocessing=wishes)
    manifest = make_dataset(source, tmp_path / "d", settings).manifest
    assert len(manifest.grids) > 1
    assert keys_and_errors(tmp_path / "d")[0][:2] == ["cats/0000.png", "cats/0002.png"]


def test_latents_beyond_float16_are_errors_not_the_end(
    source: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = RawCoding.code

    def enlarged(self: RawCoding, records: Any) -> Any:
        coded, errors = code(self, records)
        return [
            (info, LatentData(data.raw_latents * 1e9) if "0003" in info.key else data)
            for info, data in coded
        ], errors

    monkeypatch.setattr(RawCoding, "code", enlarged)
    form = ShardForm(Container.TAR, Content.FLOAT16)
    manifest = make_dataset(source, tmp_path / "d", settings_of(model_dir, form=form)).manifest
    assert (manifest.num_records, manifest.num_errors) == (13, 2)
    assert "float16" in (tmp_path / "d" / "errors.jsonl").read_text()


def test_a_finished_dataset_is_left_alone(source: Path, tmp_path: Path, model_dir: Path) -> None:
    settings = settings_of(model_dir)
    assert not make_dataset(source, tmp_path / "d", settings).was_finished
    before = digests(tmp_path / "d")
    again = make_dataset(source, tmp_path / "d", settings)
    assert again.was_finished
    assert again.manifest.num_errors == 1
    assert digests(tmp_path / "d") == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: replace(s, preprocessing=Preprocessing(size=48)), "--size was 32 and is now 48"),
        (
            lambda s: replace(s, preprocessing=Preprocessing(size=32, flip=True)),
            "--flip was off and is now on",
        ),
        (lambda s: replace(s, form=RAW, step=0, quality=None), "the content was lc and is now"),
        (lambda s: replace(s, step=s.step + 1), "the quantiser step was"),
        (lambda s: replace(s, shard_images=7), "the images of a shard was 6 and is now 7"),
        (
            lambda s: replace(s, model=replace(s.model, dtype="bfloat16")),
            "the dtype was float32 and is now bfloat16",
        ),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_changed_settings_are_named(
    source: Path,
    tmp_path: Path,
    model_dir: Path,
    change: Callable[[JobSettings], JobSettings],
    told: str,
    is_finished: bool,
) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "d", settings)
    if not is_finished:
        (tmp_path / "d" / "manifest.json").unlink()
    before = digests(tmp_path / "d")
    with pytest.raises(JobError, match=told) as error:
        make_dataset(source, tmp_path / "d", change(settings))
    assert "--overwrite" in str(error.value)
    assert digests(tmp_path / "d") == before


def test_another_model_is_named(
    source: Path, tmp_path: Path, model_dir: Path, other_model_dir: Path
) -> None:
    make_dataset(source, tmp_path / "d", settings_of(model_dir))
    with pytest.raises(
        JobError, match=r"the model was tiny \(\w{16}\) and is now other \(\w{16}\)"
    ):
        make_dataset(source, tmp_path / "d", settings_of(other_model_dir))


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize("has_plan", [False, True])
def test_a_changed_source_is_refused(
    source: Path, tmp_path: Path, model_dir: Path, is_finished: bool, has_plan: bool
) -> None:
    settings = settings_of(model_dir)
    interrupt(source, tmp_path / "d", settings, after=1)
    if is_finished:
        make_dataset(source, tmp_path / "d", settings)
    elif not has_plan:
        shutil.rmtree(tmp_path / "d" / ".job")
    (source / "cats" / "0002.png").unlink()
    with pytest.raises(SourceChangedError, match="source has changed") as error:
        make_dataset(source, tmp_path / "d", settings)
    if has_plan and not is_finished:
        assert "cats/0002.png" in str(error.value)
    wishes = Running(is_shown=False, overwrite=True)
    assert make_dataset(source, tmp_path / "d", settings, wishes).manifest.num_records == 13


class StopError(Exception):
    """Stands for a sudden end."""


def interrupt(source: Path, directory: Path, settings: JobSettings, *, after: int) -> None:
    """Runs a job that ends after some shards; the next one is half written."""
    commit = ShardWriter.commit

    def failing(self: ShardWriter, errors: Any = ()) -> Any:
        if self._shard >= after:
            raise StopError
        return commit(self, errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "commit", failing)
        with pytest.raises(StopError):
            make_dataset(source, directory, settings)
    assert not (directory / "manifest.json").exists()


def test_an_interrupted_job_does_the_rest_alone(
    source: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "whole", settings)
    interrupt(source, tmp_path / "d", settings, after=1)
    first = (tmp_path / "d" / "shard-000000.tar").stat().st_mtime_ns
    done: list[int] = []
    prepare = pieces.prepare

    def counted(piece: pieces.Piece, *rest: Any) -> pieces.Prepared:
        done.extend([piece.unit] * len(piece.entries))
        return prepare(piece, *rest)

    monkeypatch.setattr(pieces, "prepare", counted)
    make_dataset(source, tmp_path / "d", settings)
    assert done == [1] * 6 + [2] * 3
    assert (tmp_path / "d" / "shard-000000.tar").stat().st_mtime_ns == first
    assert digests(tmp_path / "d") == digests(tmp_path / "whole")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_engine_that_fails_leaves_no_half_shard(
    source: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    engine = running.run_local

    def failing(*arguments: Any) -> Any:
        yield from islice(engine(*arguments), after)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_local", failing)
        with pytest.raises(StopError):
            make_dataset(source, tmp_path / "d", settings_of(model_dir))
    left = {path.name for path in (tmp_path / "d").iterdir()}
    shards = {"shard-000000.tar", "shard-000000.index.jsonl.gz"} if after > 1 else set()
    assert left == {".job", "job.json", *shards}
    make_dataset(source, tmp_path / "d", settings_of(model_dir))


def test_what_killed_jobs_leave_is_removed(source: Path, tmp_path: Path, model_dir: Path) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "whole", settings)
    interrupt(source, tmp_path / "d", settings, after=2)
    (tmp_path / "d" / ".tmp-shard-000002.tar-0011").write_bytes(b"half a shard")
    (tmp_path / "d" / "shard-000002.tar").write_bytes(b"a shard without an index")
    (tmp_path / "d" / ".lock").write_text("1\n")
    make_dataset(source, tmp_path / "d", settings)
    assert digests(tmp_path / "d") == digests(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_was_lost_is_made_again(
    source: Path, tmp_path: Path, model_dir: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "whole", settings)
    interrupt(source, tmp_path / "d", settings, after=2)
    shard = tmp_path / "d" / "shard-000000.tar"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    make_dataset(source, tmp_path / "d", settings)
    assert "shard-000000.tar is not what its index says" in capsys.readouterr().err
    assert digests(tmp_path / "d") == digests(tmp_path / "whole")


def test_overwriting_leaves_other_files(source: Path, tmp_path: Path, model_dir: Path) -> None:
    make_dataset(source, tmp_path / "d", settings_of(model_dir))
    (tmp_path / "d" / "notes.txt").write_text("mine")
    wishes = Running(is_shown=False, overwrite=True)
    with pytest.raises(JobError, match=r"notes\.txt"):
        make_dataset(source, tmp_path / "d", settings_of(model_dir, shard_images=4), wishes)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["notes.txt"]


def test_a_folder_of_something_else_is_refused(
    source: Path, tmp_path: Path, model_dir: Path
) -> None:
    before = digests(source)
    with pytest.raises(JobError, match=r"holds 'cats' and no job\.json"):
        make_dataset(source, source, settings_of(model_dir))
    assert digests(source) == before
    with pytest.raises(JobError, match="is a file"):
        make_dataset(source, source / "cats" / "0000.png", settings_of(model_dir))


def test_a_second_job_is_refused(source: Path, tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "d").mkdir()
    with lock_dataset(tmp_path / "d"), pytest.raises(BusyError, match="another job"):
        make_dataset(source, tmp_path / "d", settings_of(model_dir))
    assert make_dataset(source, tmp_path / "d", settings_of(model_dir)).manifest.num_records == 14


def test_too_many_errors_stop_the_job_and_it_can_go_on(tmp_path: Path, model_dir: Path) -> None:
    source = write_images(tmp_path / "images", 15, broken=(0, 4, 8))
    settings = settings_of(model_dir)
    with pytest.raises(
        TooManyErrors, match=r"2 images failed, and --max-errors allows 1; the last"
    ):
        make_dataset(source, tmp_path / "d", settings, Running(max_errors=1, is_shown=False))
    report = make_dataset(source, tmp_path / "d", settings, Running(max_errors=3, is_shown=False))
    assert report.manifest.num_errors == 3


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["shard", "index", "manifest", "plan", "job"])
def test_a_full_disk_is_told_and_the_job_goes_on(
    source: Path, tmp_path: Path, model_dir: Path, where: str
) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "whole", settings)
    places = {
        "shard": "codec.shards.members.HashingStream.write",
        "index": "codec.shards.writer.write_index",
        "manifest": "codec.shards.manifest.Manifest.write",
        "plan": "codec.dataset.running.write_plan",
        "job": "codec.dataset.running.write_job",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places[where], full_disk)
        with pytest.raises(FullDiskError, match="No space left on device; make room"):
            make_dataset(source, tmp_path / "d", settings)
    assert not (tmp_path / "d" / "manifest.json").exists()
    assert not list((tmp_path / "d").glob(".tmp-*"))
    make_dataset(source, tmp_path / "d", settings)
    assert digests(tmp_path / "d") == digests(tmp_path / "whole")


def test_retried_images_are_told(
    source: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encode = pieces.Encoder.encode

    def retried(self: pieces.Encoder, pixels: Any) -> Any:
        monkeypatch.setattr(self, "batch_limit", 2)
        return [replace(image, is_retried=True) for image in encode(self, pixels)]  # type: ignore[type-var]

    monkeypatch.setattr(pieces.Encoder, "encode", retried)
    report = make_dataset(source, tmp_path / "d", settings_of(model_dir))
    assert (report.num_retried, report.batch_limit) == (14, 2)
    told = capsys.readouterr().err
    assert "14 images gave latents that are not finite and were encoded again in float32: " in told
    assert "give --batch-size 2 the next time" in told


def test_outcomes_are_written_in_order_whatever_order_they_come_in(
    source: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(model_dir)
    make_dataset(source, tmp_path / "whole", settings)
    engine = running.run_local

    def backwards(*arguments: Any) -> Any:
        yield from reversed(list(engine(*arguments)))

    monkeypatch.setattr(running, "run_local", backwards)
    make_dataset(source, tmp_path / "d", settings)
    assert digests(tmp_path / "d") == digests(tmp_path / "whole")


def test_a_unit_without_a_good_image_has_an_empty_shard(tmp_path: Path, model_dir: Path) -> None:
    source = write_images(tmp_path / "images", 4, broken=(0, 2))
    manifest = make_dataset(source, tmp_path / "d", settings_of(model_dir, shard_images=2)).manifest
    assert [shard.num_records for shard in manifest.shards] == [0, 2]
    assert Manifest.read(tmp_path / "d").num_errors == 2
