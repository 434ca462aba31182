"""What rate-distortion curves say: tables for people, rows for programs.

A rate or a value that a codec was not measured at is interpolated between two points of its mean
curve, and left out (a dash) beyond them; see `eval.interpolation`.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from codec.outputs import atomic_output
from eval.interpolation import Lead, Points, least_lead, rate_for, value_at
from eval.rate_curve import Curve, RateReport
from eval.results import MeanResult, figure

RATES_BPP = (0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
_COLUMNS = ("size_bytes", "bpp", "psnr", "ssim", "ms_ssim", "lpips", "encode_s", "decode_s")
_DIGITS = (0, 3, 2, 4, 4, 4, 3, 3)


@dataclass(frozen=True, slots=True)
class Need:
    """What a codec needs for the LPIPS of our default; each None where it was not measured.

    Attributes:
        codec: its name.
        bpp: rate.
        size_bytes: mean bytes of a file.
        times_ours: those bytes over ours.
    """

    codec: str
    bpp: float | None
    size_bytes: float | None
    times_ours: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our LPIPS against another codec's at equal rates up to 0.5 bpp; None without a common one."""

    codec: str
    lead: Lead | None


@dataclass(frozen=True, slots=True)
class RateRow:
    """One metric of each codec at one rate, in the order of the curves."""

    rate_bpp: float
    values: tuple[float | None, ...]


def write_report(report: RateReport, folder: Path) -> list[Path]:
    """Write `rd.json`, `rd.csv` and `rd.md`, each whole or not at all, and return their paths."""
    written = []
    for name, text in (
        ("rd.json", to_json(report)),
        ("rd.csv", to_csv(report)),
        ("rd.md", to_markdown(report)),
    ):
        with atomic_output(folder / name) as stream:
            stream.write(text.encode())
        written.append(folder / name)
    return written


def rows_at_rates(report: RateReport, metric: str) -> list[RateRow]:
    """Return a metric at the rates of `RATES_BPP`."""
    return [
        RateRow(rate, tuple(value_at(points_of(curve, metric), rate) for curve in report.curves))
        for rate in RATES_BPP
    ]


def needs(report: RateReport) -> list[Need]:
    """Return what each codec needs for the LPIPS of our default; nothing without that."""
    if report.default is None or report.default.mean.lpips is None:
        return []
    target, ours = report.default.mean.lpips, report.default.mean.size_bytes
    assert ours is not None
    found = []
    for curve in report.curves:
        size_bytes = rate_for(points_of(curve, "lpips", "size_bytes"), target)
        found.append(
            Need(
                codec=curve.codec,
                bpp=rate_for(points_of(curve, "lpips"), target),
                size_bytes=size_bytes,
                times_ours=None if size_bytes is None else size_bytes / ours,
            )
        )
    return found


def comparisons(report: RateReport) -> list[Comparison]:
    """Compare our LPIPS with every other codec's; nothing without ours or without LPIPS."""
    if report.default is None or report.default.mean.lpips is None:
        return []
    ours, *others = report.curves
    return [
        Comparison(
            other.codec,
            least_lead(points_of(ours, "lpips"), points_of(other, "lpips"), RATES_BPP[-1]),
        )
        for other in others
    ]


def points_of(curve: Curve, metric: str, rate: str = "bpp") -> Points:
    """Return (rate, value) of the points that have both."""
    pairs = ((getattr(p.mean, rate), getattr(p.mean, metric)) for p in curve.points)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def to_json(report: RateReport) -> str:
    """Return curves and what follows from them as JSON, strictly: no NaN, no Infinity."""
    content = asdict(report) | {
        "at_rates": {
            metric: [asdict(row) for row in rows_at_rates(report, metric)]
            for metric in ("lpips", "ms_ssim")
        },
        "needed_for_default_lpips": [asdict(need) for need in needs(report)],
        "lpips_leads": [asdict(comparison) for comparison in comparisons(report)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(report: RateReport) -> str:
    """Return a line a codec and quality: means over the images, empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["codec", "quality", *_COLUMNS])
    for curve in _all_curves(report):
        for point in curve.points:
            means = [getattr(point.mean, column) for column in _COLUMNS]
            writer.writerow([curve.codec, point.quality, *means])
    return stream.getvalue()


def to_markdown(report: RateReport) -> str:
    """Return the report for people."""
    lpips = report.lpips or "LPIPS"
    parts = [
        "# Rate and distortion",
        f"Means over {report.num_images} images (fingerprint {report.fingerprint}), from real "
        "files: whole-file bytes, 8-bit RGB.",
        f"`{report.command}`",
        _table(
            ["codec", "settings"],
            [[curve.codec, curve.settings] for curve in _all_curves(report)],
        ),
        _points_table(report, lpips),
        *_against_unquantised(report, lpips),
    ]
    for title, metric in ((lpips, "lpips"), ("MS-SSIM", "ms_ssim")):
        if any(points_of(curve, metric) for curve in report.curves):
            parts += [f"## {title} at equal rates", _rates_table(report, metric)]
    parts += _needs_section(report, lpips)
    parts += ["A dash: outside what was measured; nothing is extrapolated."]
    if report.errors:
        parts += ["## Left out", _bullets(f"{e.name}: {e.error}" for e in report.errors)]
    if report.notes:
        parts += ["## Notes", _bullets(report.notes)]
    parts.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return "\n\n".join(parts) + "\n"


def _all_curves(report: RateReport) -> list[Curve]:
    """Put the unquantised latents before the curves."""
    return [*([report.unquantised] if report.unquantised else []), *report.curves]


def _points_table(report: RateReport, lpips: str) -> str:
    titles = ["codec", "quality", "bytes", "bpp", "PSNR dB", "SSIM", "MS-SSIM", lpips]
    rows, default = [], report.default
    for curve in _all_curves(report):
        is_ours = default is not None and curve is report.curves[0]
        for point in curve.points:
            is_default = is_ours and default is not None and point.quality == default.quality
            name = _quality(point.quality) + (" (default)" if is_default else "")
            rows.append([curve.codec, name, *_figures(point.mean)])
    return _table([*titles, "encode s", "decode s"], rows)


def _figures(mean: MeanResult) -> list[str]:
    values = (getattr(mean, column) for column in _COLUMNS)
    return [figure(value, digits) for value, digits in zip(values, _DIGITS, strict=True)]


def _against_unquantised(report: RateReport, lpips: str) -> list[str]:
    """Say in a sentence what the default's quantisation costs."""
    if report.default is None or report.unquantised is None:
        return []
    (best,), default = report.unquantised.points, report.default.mean
    costs = []
    if best.mean.psnr is not None and default.psnr is not None:
        costs.append(f"{best.mean.psnr - default.psnr:+.3f} dB of PSNR")
    if best.mean.lpips is not None and default.lpips is not None:
        costs.append(f"{default.lpips - best.mean.lpips:+.4f} of {lpips}")
    if not costs:
        return []
    quality = _quality(report.default.quality)
    return [f"Quantisation at the default (quality {quality}) costs {' and '.join(costs)}."]


def _rates_table(report: RateReport, metric: str) -> str:
    rows = [
        [f"{row.rate_bpp:g}", *(figure(value, 4) for value in row.values)]
        for row in rows_at_rates(report, metric)
    ]
    return _table(["bpp", *(curve.codec for curve in report.curves)], rows)


def _needs_section(report: RateReport, lpips: str) -> list[str]:
    found = needs(report)
    if not found or report.default is None:
        return []
    rows = [
        [n.codec, figure(n.bpp, 3), figure(n.size_bytes, 0), figure(n.times_ours, 2)] for n in found
    ]
    title = f"## Bytes for the {lpips} of our default, {figure(report.default.mean.lpips, 4)}"
    table = _table(["codec", "bpp", "bytes", "times ours"], rows)
    leads = [_lead_sentence(c, report.curves[0].codec, lpips) for c in comparisons(report)]
    return [title, table, *([_bullets(leads)] if leads else [])]


def _lead_sentence(comparison: Comparison, ours: str, lpips: str) -> str:
    lead, other = comparison.lead, comparison.codec
    if lead is None:
        return f"{ours} and {other} share no rate up to {RATES_BPP[-1]} bpp."
    verdict = "is below" if lead.least > 0 else "is not below"
    return (
        f"{lpips} of {ours} {verdict} that of {other} at every rate from {lead.lowest_rate:.3f} to "
        f"{lead.highest_rate:.3f} bpp: the least lead is {lead.least:+.4f}, at {lead.rate:.3f} bpp."
    )


def _quality(quality: float | None) -> str:
    return "-" if quality is None else f"{quality:g}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"* {sentence}" for sentence in sentences)
