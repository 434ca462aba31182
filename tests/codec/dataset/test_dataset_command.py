"""`latent-codec dataset`: exit codes, sentences, figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from codec import cli
from codec.dataset import running
from codec.dataset.profile import Profile, StageTimes
from codec.dataset.progress import Progress
from tests.codec.dataset.jobs import run_serial, write_images


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(running, "run_local", run_serial)
    monkeypatch.setattr("codec.dataset.workers.warm_up", lambda preload: None)
    return write_images(tmp_path / "images", 9)


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["latent-codec", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def options(model: Path) -> list[str | Path]:
    return ["--model", model, "--device", "cpu", "--size", "32", "--shard-images", "4"]


def test_a_dataset_and_its_figures(
    source: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["dataset", source, "-o", tmp_path / "d", *options(model_dir), "--profile"]
    assert call(monkeypatch, *words) == 0
    told = capsys.readouterr()
    assert "9 images, 9 records in 3 shards" in told.out
    assert "on 2 cores at best" in told.out or "cores at best" in told.out
    assert "encoding: 9 of 9 images (100 %)" in told.err
    assert "0 errors" in told.err
    assert call(monkeypatch, *words, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["was_finished"] is True
    assert json.loads(told.out)["records"] == 9
    assert told.err == ""
    assert call(monkeypatch, "verify", tmp_path / "d", "--all", "--model", model_dir) == 0
    assert call(monkeypatch, "stats", tmp_path / "d") == 0


def test_images_that_fail_make_the_exit_code_1(
    tmp_path: Path,
    model_dir: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (source / "cats" / "0000.png").write_bytes(b"")
    words = ["dataset", source, "-o", tmp_path / "d", *options(model_dir)]
    assert call(monkeypatch, *words) == 1
    told = capsys.readouterr().err
    assert "error: 1 images gave no latents, or not all; " in told
    assert "errors.jsonl says which and why" in told
    assert call(monkeypatch, *words, "--max-errors", "0", "--overwrite") == 1
    assert "--max-errors allows 0" in capsys.readouterr().err


def test_numbers_in_parquet(
    source: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    words = ["dataset", source, "-o", tmp_path / "d", *options(model_dir)]
    words += ["--raw", "fp16", "--posterior", "--container", "parquet", "--flip"]
    assert call(monkeypatch, *words) == 0
    job = json.loads((tmp_path / "d" / "job.json").read_text())
    assert (job["content"], job["container"], job["posterior"]) == ("float16", "parquet", True)
    assert job["step"] is None
    assert (tmp_path / "d" / "shard-000002.parquet").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected a folder, or --plan"),
        (["-o", "d", "--posterior"], "give --raw"),
        (["-o", "d", "--raw", "fp16", "--quality", "50"], "leave --quality and --step out"),
        (["-o", "d", "--ray-address", "auto"], "go with --engine ray"),
        (["-o", "d", "--step", "0"], "a number above 0"),
        (["-o", "d", "--buckets"], "give a size"),
        (["-o", "d", "--crops", "3"], "give a size"),
        (["-o", "d", "--engine", "spark"], "local"),
    ],
)
def test_wrong_use_is_told(
    words: list[str],
    told: str,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "dataset", source, *words) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_plan_is_printed_and_nothing_written(
    source: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = ["dataset", source, *options(model_dir), "--plan", "--plan-images", "1000000"]
    assert call(monkeypatch, *words) == 0
    told = capsys.readouterr().out
    assert "1,000,000 images give 1,000,000 records" in told
    assert call(monkeypatch, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_shards"] == 250_000
    assert sorted(tmp_path.rglob("*")) == before


def test_help_needs_no_torch() -> None:
    code = "import sys; from codec import cli; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_line_says_where_the_job_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(200, errors=1) as progress:
        progress.advance(50, 4_000_000, 1)
        line = progress.line()
    assert line.startswith("encoding: 50 of 200 images (25 %), ")
    assert "images/s" in line
    assert "MB/s, 2 errors, 0:" in line
    assert line.endswith(" left")
    assert capsys.readouterr().err.count("\n") == 1, "a short job has one line, at its end"


def test_the_profile_compares_with_cores_that_never_wait() -> None:
    times = StageTimes({"prepare": 20.0, "encode": 70.0, "pack": 9.0, "write": 1.0})
    profile = Profile(times, wall_seconds=55.0, num_images=1000, num_records=2000, cores=2)
    found = profile.to_mapping()
    assert found["ideal_seconds"] == 50.0
    assert found["wall_over_ideal"] == 1.1
    assert found["encoder_alone_per_second"] == pytest.approx(2000 * 2 / 70, abs=1e-3)
    assert "wall time 55.0 s, +10.0 % of that: 18.2 images/s end to end" in profile.lines()[-1]
