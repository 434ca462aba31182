"""Jobs for the tests of the engines: a folder of small images, settings, and what came out."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import PIL.Image
import pytest
import torch

from codec.dataset import running
from codec.dataset.encoder import Encoder, ModelSpec, find_model
from codec.dataset.engines import Running
from codec.dataset.job import JobSettings, settle_step
from codec.dataset.pieces import Outcome, Piece, Steps, Work
from codec.dataset.preprocess import Preprocessing
from codec.dataset.running import Report, run_job
from codec.dataset.sources import open_source
from codec.shards.forms import ShardForm
from codec.shards.index import read_index
from codec.shards.layout import committed_shards, index_name
from codec.shards.records import ItemError
from tests.conftest import make_pixels


def write_images(folder: Path, count: int, *, broken: tuple[int, ...] = ()) -> Path:
    """Makes a folder of small pictures of several sizes, in two classes; some are cut short."""
    for number in range(count):
        path = folder / ("cats", "dogs")[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = 40 + 8 * (number % 3), 48 + 16 * (number % 2)
        PIL.Image.fromarray(make_pixels(height, width, number)).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:100])
    return folder


def settings_of(
    model: Path,
    *,
    form: ShardForm | None = None,
    preprocessing: Preprocessing | None = None,
    shard_images: int = 6,
    batch_size: int = 4,
    dtype: str = "float32",
    quality: float | None = None,
) -> JobSettings:
    """Settings of a small job with a tiny model."""
    form = form or ShardForm()
    spec = find_model(str(model), "cpu", dtype, posterior=form.posterior)
    step, known = settle_step(spec, form.content, quality, None)
    return JobSettings(
        model=spec,
        preprocessing=preprocessing or Preprocessing(size=32),
        form=form,
        step=step,
        quality=known,
        batch_size=batch_size,
        shard_images=shard_images,
        records_per_member=256,
    )


@cache
def _loaded(model: ModelSpec) -> Encoder:
    """A network that is loaded once for all tests, which takes longer than their images."""
    return Encoder(model)


def run_serial(pieces: Iterator[Piece], work: Work, num_workers: int) -> Generator[Outcome]:
    """An engine without processes, to compare with."""
    del num_workers
    steps = Steps(work)
    vars(steps)["encoder"] = _loaded(work.model)
    for piece in pieces:
        yield steps.pack(steps.encode(steps.prepare(piece), time.process_time))


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the local engine work in this process: the same records, without starting processes."""
    monkeypatch.setattr(running, "run_local", run_serial)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker; more are slower for images as small as these
    yield
    torch.set_num_threads(threads)


def make_dataset(
    source: Path, directory: Path, settings: JobSettings, wishes: Running | None = None
) -> Report:
    """Runs a job in this process."""
    wishes = wishes or Running(is_shown=False, workers=2)
    return run_job(lambda: open_source(source), directory, settings, wishes)


def digests(directory: Path) -> dict[str, str]:
    """Every file of a dataset by name, hidden ones too."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def keys_and_errors(directory: Path) -> tuple[list[str], list[str]]:
    """The keys of all records, and those of all errors, in the order of the shards."""
    keys, errors = [], []
    for shard in committed_shards(directory):
        for entry in read_index(directory / index_name(shard))[1]:
            if isinstance(entry, ItemError):
                errors.append(entry.key)
            else:
                keys.append(entry.info.key)
    return keys, errors


def command(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Starts `latent-codec` as a process group of its own, with its stderr kept for messages."""
    return subprocess.Popen(
        [sys.executable, "-m", "codec", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
