"""Runs side by side, from folders that the bookkeeping itself wrote."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from train import cli
from train.bookkeeping import RunLog
from train.records import save_config
from train.report import ReportError, overhead_share, read_log, render_table, report_run
from train.sections import TrainConfig
from train.state import Progress, save_best, save_checkpoint

MakeConfig = Callable[..., TrainConfig]

GAUSSIAN = {
    "val/psnr": 26.1234,
    "val/lpips_squeeze": 0.10987,
    "val/rate_bpp": 0.1844,
    "health/kl_bits": 3.5,
    "health/active_units": 0.75,
    "health/latent_std": 2.0,
}
DISCRETE = {
    "val/psnr": 24.0,
    "val/lpips_alex": 0.2,
    "val/rate_bpp": 0.1,
    "health/codebook_usage": 0.5,
    "health/perplexity": 300.2,
}


@pytest.fixture
def make_run(make_config: MakeConfig, tmp_path: Path) -> Callable[..., Path]:
    """Writes the records that a run would have left."""

    def make(name: str, *validations: dict[str, float]) -> Path:
        run_dir, config = tmp_path / name, make_config()
        save_config(config, run_dir, {"num_images": 6, "sha256": "ab"})
        with RunLog(run_dir, config, Accelerator(cpu=True)) as log:
            for number, figures in enumerate(validations, start=1):
                progress = Progress(1000 * number, 100 * number, 300.0 * number)
                log.write(progress, {"loss/total": 1.0})
                log.write(progress, figures)
                log.warn(progress, ["something is wrong"])
        weights = {"weight": torch.zeros(100, 300), "bias": torch.zeros(100)}
        tensors = {"model": {**weights, "codes": torch.zeros(9)}, "ema": weights}
        save_checkpoint(run_dir, tensors, {}, progress, total_limit=1)
        return run_dir

    return make


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latent-codec-train", *map(str, words)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_a_table_of_runs(
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = {**GAUSSIAN, "val/psnr": 20.0}
    runs = [make_run("kl", earlier, GAUSSIAN), make_run("vq", DISCRETE), make_run("none", {})]
    capsys.readouterr()
    assert call(monkeypatch, "report", *runs) == 0
    table = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    kl, vq, none = (dict(zip(cells[0], row, strict=True)) for row in cells[2:])
    assert kl == {
        "run": "kl",
        "images": "2000",
        "minutes": "10.0",
        "parameters": "0.03M",
        "PSNR (dB)": "26.12",
        "LPIPS (squeeze)": "0.1099",
        "LPIPS (alex)": "-",
        "rate (bpp)": "0.184",
        "KL (bits)": "3.500",
        "active units": "75%",
        "codes used": "-",
        "perplexity": "-",
    }
    assert (vq["LPIPS (alex)"], vq["LPIPS (squeeze)"]) == ("0.2000", "-")
    assert (vq["codes used"], vq["perplexity"]) == ("50%", "300")
    assert (none["images"], none["PSNR (dB)"]) == ("1000", "-")

    assert call(monkeypatch, "report", runs[0], "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["figures"] == GAUSSIAN
    assert found["num_parameters"] == 30_100
    assert found["validated_at"] == 2000
    assert found["versions"]["processes"] == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "log.jsonl").unlink(), "found no log.jsonl in .*run.output_dir"),
        (lambda run: (run / "config.yaml").unlink(), "found no config.yaml"),
        (lambda run: (run / "versions.json").unlink(), "found no versions.json"),
        (lambda run: (run / "log.jsonl").write_text('{"ima'), "found no figures"),
        (lambda run: next(run.glob("checkpoint-*")).rename(run / "x"), "found no checkpoint"),
    ],
)
def test_an_incomplete_run_is_one_sentence(
    make_run: Callable[..., Path], damage: Callable[[Path], None], message: str
) -> None:
    run_dir = make_run("kl", GAUSSIAN)
    assert report_run(run_dir).images == 1000
    damage(run_dir)
    with pytest.raises(ReportError, match=message):
        report_run(run_dir)


def test_a_missing_run_ends_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "report", tmp_path / "nowhere") == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith("error: found no config.yaml in")


def test_the_best_weights_count_where_no_checkpoint_is_left(make_run: Callable[..., Path]) -> None:
    run_dir = make_run("kl", GAUSSIAN)
    next(run_dir.glob("checkpoint-*")).rename(run_dir / "elsewhere")
    tensors = {"model": {}, "ema": {"weight": torch.zeros(7)}}
    save_best(run_dir, tensors, GAUSSIAN, Progress(2, 1, 1.0))
    assert report_run(run_dir).num_parameters == 7


def test_lines_cut_short_are_left_out(make_run: Callable[..., Path]) -> None:
    run_dir = make_run("kl", GAUSSIAN)
    whole = read_log(run_dir)
    with (run_dir / "log.jsonl").open("a") as stream:
        stream.write('{"images": 9, "val/p')
    assert read_log(run_dir) == whole


def test_columns_that_no_run_has_are_left_out(make_run: Callable[..., Path]) -> None:
    table = render_table([report_run(make_run("vq", DISCRETE))])
    assert "perplexity" in table
    assert "active" not in table


def test_distillation_and_factors_have_columns(make_run: Callable[..., Path]) -> None:
    figures = {
        "distill/latent_error": 0.0123,
        "distill/psnr_teacher": 27.456,
        "distill/psnr_student": 26.2,
        "health/mig": 0.314,
    }
    report = report_run(make_run("student", {**GAUSSIAN, **figures}))
    assert figures.items() <= report.figures.items()
    headings, _, row = (
        line.strip("| ").split(" | ") for line in render_table([report]).split("\n")
    )
    cells = dict(zip(headings, row, strict=True))
    assert (cells["latent error"], cells["MIG"]) == ("1.2%", "0.31")
    assert (cells["teacher (dB)"], cells["student (dB)"]) == ("27.46", "26.20")


def timed(step: int, seconds: float, data: float, log: float) -> dict[str, float]:
    shares = {"time/data_share": data, "time/log_share": log}
    return {"images": 2 * step, "step": step, "time/step_seconds": seconds, **shares}


def test_overhead_is_a_share_of_the_time_of_the_whole_run(make_run: Callable[..., Path]) -> None:
    lines = [timed(50, 1.0, 0.5, 0.1), {"step": 50, "val/psnr": 20.0}, timed(60, 5.0, 0.0, 0.2)]
    assert overhead_share(lines) == pytest.approx((50 * 0.6 + 50 * 0.2) / 100)
    again = [timed(60, 5.0, 1.0, 0.0), timed(70, 9.0, 1.0, 0.0)]  # then resumed from step 50
    assert overhead_share([*lines[:2], *again, lines[2]]) == overhead_share(lines)
    assert overhead_share([{"step": 50, "loss/total": 1.0}]) is None

    # Two lines at steps 100 and 200, of the same time.
    figures = [
        {**GAUSSIAN, "time/step_seconds": 1.0, "time/data_share": share, "time/log_share": 0.01}
        for share in (0.1, 0.2)
    ]
    report = report_run(make_run("kl", *figures))
    assert report.figures["time/overhead_share"] == pytest.approx(0.16)
    headings, _, row = render_table([report]).splitlines()
    assert headings.endswith("| data + log |")
    assert row.endswith("| 16.0% |")


def test_a_figure_that_was_not_finite_is_missing(make_run: Callable[..., Path]) -> None:
    run_dir = make_run("kl", GAUSSIAN, {**GAUSSIAN, "val/psnr": math.inf})
    report = report_run(run_dir)
    assert report.validated_at == 2000
    assert "val/psnr" not in report.figures
    assert report.figures["val/rate_bpp"] == GAUSSIAN["val/rate_bpp"]
