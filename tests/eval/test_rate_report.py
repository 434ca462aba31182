"""What rd.json, rd.csv and rd.md say of curves that are made up here."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from eval.rate_curve import Curve, Point, RateReport
from eval.rate_report import (
    RATES_BPP,
    comparisons,
    needs,
    rows_at_rates,
    to_csv,
    to_json,
    to_markdown,
    write_report,
)
from eval.results import Failure, MeanResult, mean_of


def mean(bpp: float | None, lpips: float | None, ms_ssim: float | None = 0.9) -> MeanResult:
    size_bytes = None if bpp is None else 1000 * bpp
    return MeanResult(size_bytes, bpp, 30.0, 0.8, ms_ssim, lpips, 0.1, 0.2)


def curve(name: str, *points: tuple[float, float]) -> Curve:
    measured = (Point(10 * k, mean(bpp, lpips)) for k, (bpp, lpips) in enumerate(points, 1))
    return Curve(name, "settings", tuple(measured))


OURS = curve("ours", (0.1, 0.3), (0.2, 0.2), (0.4, 0.15))
WORSE = curve("worse", (0.2, 0.6), (0.8, 0.2), (1.6, 0.1))
SHORT = curve("short", (0.3, 0.5), (0.4, 0.4))
REPORT = RateReport(
    curves=(OURS, WORSE, SHORT),
    default=OURS.points[1],
    unquantised=Curve(
        "ours, unquantised", "no file", (Point(None, replace(mean(None, 0.195), psnr=30.1)),)
    ),
    lpips="LPIPS(squeeze)",
    num_images=3,
    fingerprint="0123456789abcdef",
    errors=(Failure("broken.png", "no image"),),
    notes=("a note",),
    versions={"python": "3.11"},
    command="latent-codec-eval rd photos",
)


def test_the_grid_ends_at_half_a_bit() -> None:
    assert max(RATES_BPP) == 0.5
    rows = rows_at_rates(REPORT, "lpips")
    assert [row.rate_bpp for row in rows] == list(RATES_BPP)
    found = {row.rate_bpp: row.values for row in rows}
    assert found[0.1] == (0.3, None, None)
    assert found[0.2] == (0.2, 0.6, None)
    assert found[0.4] == (0.15, pytest.approx(0.4), pytest.approx(0.4))
    assert found[0.5][0] is None  # ours ends at 0.4 bpp


def test_bytes_for_our_default() -> None:
    ours, worse, short = needs(REPORT)
    assert (ours.bpp, ours.size_bytes, ours.times_ours) == (0.2, 200, 1)
    assert worse.bpp == pytest.approx(0.8)
    assert worse.times_ours == pytest.approx(4)
    assert (short.bpp, short.size_bytes, short.times_ours) == (None, None, None)


def test_leads_over_the_rates_of_each_codec() -> None:
    worse, short = comparisons(REPORT)
    assert worse.lead is not None
    assert (worse.lead.lowest_rate, worse.lead.highest_rate) == (0.2, 0.5)
    at_the_end = 0.6 - 0.4 * math.log(0.5 / 0.2) / math.log(0.8 / 0.2)
    assert worse.lead.least == pytest.approx(at_the_end - 0.15)
    assert short.lead is not None
    assert short.lead.least == pytest.approx(0.25)


def test_nothing_follows_without_lpips_or_without_ours() -> None:
    blind = [
        replace(c, points=tuple(Point(p.quality, mean(p.mean.bpp, None)) for p in c.points))
        for c in REPORT.curves
    ]
    without = replace(REPORT, curves=tuple(blind), default=blind[0].points[1], lpips=None)
    others = replace(REPORT, curves=(WORSE, SHORT), default=None, unquantised=None)
    for report in (without, others):
        assert needs(report) == []
        assert comparisons(report) == []
        assert "times ours" not in to_markdown(report)
    assert "LPIPS at equal rates" not in to_markdown(without)
    assert "+0.100 dB of PSNR." in to_markdown(without)


def test_json_holds_everything(tmp_path: Path) -> None:
    written = write_report(REPORT, tmp_path / "new")
    assert [path.name for path in written] == ["rd.json", "rd.csv", "rd.md"]
    content = json.loads(written[0].read_text())
    assert content["curves"][1]["points"][0]["mean"]["bpp"] == 0.2
    assert content["needed_for_default_lpips"][1]["times_ours"] == pytest.approx(4)
    assert content["lpips_leads"][0]["codec"] == "worse"
    assert content["at_rates"]["ms_ssim"][2]["values"] == [0.9, None, None]
    assert written[2].read_text() == to_markdown(REPORT)


def test_csv_has_a_line_a_point() -> None:
    rows = list(csv.DictReader(to_csv(REPORT).splitlines()))
    assert len(rows) == 1 + 3 + 3 + 2
    assert (rows[0]["codec"], rows[0]["quality"], rows[0]["bpp"]) == ("ours, unquantised", "", "")
    assert float(rows[2]["lpips"]) == 0.2


def test_markdown_for_people() -> None:
    text = to_markdown(REPORT)
    for line in (
        "| ours, unquantised | - | - | - | 30.10 | 0.8000 | 0.9000 | 0.1950 | 0.100 | 0.200 |",
        "| ours | 20 (default) | 200 | 0.200 | 30.00 | 0.8000 | 0.9000 | 0.2000 | 0.100 | 0.200 |",
        "| worse | 20 | 800 | 0.800 | 30.00 | 0.8000 | 0.9000 | 0.2000 | 0.100 | 0.200 |",
        "Quantisation at the default (quality 20) costs +0.100 dB of PSNR and +0.0050 of "
        "LPIPS(squeeze).",
        "## Bytes for the LPIPS(squeeze) of our default, 0.2000",
        "| worse | 0.800 | 800 | 4.00 |",
        "| short | - | - | - |",
        "* LPIPS(squeeze) of ours is below that of worse at every rate from 0.200 to 0.500 bpp: "
        "the least lead is +0.1856, at 0.500 bpp.",
        "* broken.png: no image",
        "* a note",
        "`latent-codec-eval rd photos`",
    ):
        assert line in text.splitlines()


def test_a_worse_curve_is_said_to_be_worse() -> None:
    beaten = replace(REPORT, curves=(OURS, curve("better", (0.1, 0.4), (0.3, 0.1))))
    assert "is not below that of better" in to_markdown(beaten)
    apart = replace(REPORT, curves=(OURS, curve("large", (0.6, 0.4), (0.9, 0.1))))
    assert "ours and large share no rate up to 0.5 bpp." in to_markdown(apart)


def test_a_report_of_nothing_can_be_written() -> None:
    empty = tuple(
        replace(c, points=tuple(Point(p.quality, mean_of([])) for p in c.points))
        for c in REPORT.curves
    )
    report = replace(REPORT, curves=empty, default=empty[0].points[1], num_images=0)
    assert "| ours | 10 | - | - | - |" in to_markdown(report)
    assert json.loads(to_json(report))["lpips_leads"] == []
