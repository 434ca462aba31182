"""Finished runs side by side, from what each wrote down itself."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from codec.errors import LatentCodecError
from codec.identity import stored_tensors
from train.state import BEST, list_checkpoints

COLUMNS = {
    "val/psnr": ("PSNR (dB)", ".2f"),
    "val/lpips_squeeze": ("LPIPS (squeeze)", ".4f"),
    "val/lpips_alex": ("LPIPS (alex)", ".4f"),
    "val/lpips_vgg": ("LPIPS (vgg)", ".4f"),
    "distill/latent_error": ("latent error", ".1%"),
    "distill/psnr_teacher": ("teacher (dB)", ".2f"),
    "distill/psnr_student": ("student (dB)", ".2f"),
    "val/rate_bpp": ("rate (bpp)", ".3f"),
    "val/bits_per_symbol": ("bits a symbol", ".3f"),
    "val/linear_bits_per_symbol": ("linear coder", ".3f"),
    "val/order0_bits_per_symbol": ("order 0", ".3f"),
    "val/loss": ("held-out error", ".4f"),
    "val/elbo_bpd": ("ELBO (bits/dim)", ".3f"),
    "val/iwae_bpd": ("IWAE (bits/dim)", ".3f"),
    "health/kl_bits": ("KL (bits)", ".3f"),
    "health/active_units": ("active units", ".0%"),
    "health/codebook_usage": ("codes used", ".0%"),
    "health/codebook_usage_top": ("codes used, top", ".0%"),
    "health/codebook_usage_bottom": ("codes used, bottom", ".0%"),
    "health/perplexity": ("perplexity", ".0f"),
    "health/perplexity_top": ("perplexity, top", ".0f"),
    "health/perplexity_bottom": ("perplexity, bottom", ".0f"),
    "health/mig": ("MIG", ".2f"),
    "time/overhead_share": ("data + log", ".1%"),
}
"""Logged name to heading and number format; a column stands in the table where a run has it."""

MISSING = "-"


class ReportError(LatentCodecError):
    """A run's records are missing or incomplete."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What one run states.

    Attributes:
        run: name of its folder.
        images: crops seen.
        minutes: spent training, over all parts of a resumed run.
        num_parameters: of the network.
        validated_at: images seen at the last held-out figures; None if there are none.
        figures: the last held-out, health and distillation figures, by logged name, and
            `time/overhead_share`: of the training time, what went into data and the log.
        versions: packages, Python, processor and processes.
    """

    run: str
    images: int
    minutes: float
    num_parameters: int
    validated_at: int | None
    figures: dict[str, float]
    versions: dict[str, Any]


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; those that a kill cut short are left out.

    So are figures that are null: they were not finite.

    Raises:
        ReportError: there is no log, or no whole line in it.
    """
    lines = []
    for text in _read(run_dir, "log.jsonl").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines.append({name: value for name, value in line.items() if value is not None})
    if not any("warning" not in line for line in lines):
        raise ReportError(
            f"found no figures in {run_dir / 'log.jsonl'}, expected a run that has come as far as "
            "its first line: let it train on with --resume"
        )
    return lines


def last_validation(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last line with held-out figures."""
    validations = (line for line in reversed(lines) if any(n.startswith("val/") for n in line))
    return next(validations, None)


def overhead_share(lines: Sequence[dict[str, Any]]) -> float | None:
    """Share of a run's training time that went into waiting for data and into the log.

    Lines of steps that a resumed run took again are left out, as they are of its minutes. None if
    no line says where the time went.
    """
    timed: list[dict[str, Any]] = []
    for line in lines:
        if "time/step_seconds" in line:
            while timed and timed[-1]["step"] >= line["step"]:
                timed.pop()
            timed.append(line)
    steps = np.diff([0, *(line["step"] for line in timed)])
    seconds = steps * [line["time/step_seconds"] for line in timed]
    shares = [line["time/data_share"] + line["time/log_share"] for line in timed]
    return float(np.average(shares, weights=seconds)) if timed else None


def read_json_record(run_dir: Path, name: str) -> dict[str, Any]:
    """The object in a run's versions.json or data.json."""
    record: dict[str, Any] = json.loads(_read(run_dir, name))
    return record


def report_run(run_dir: Path) -> RunReport:
    """Read one run.

    Raises:
        ReportError: a record is missing, or there is no checkpoint.
    """
    if not isinstance(yaml.safe_load(_read(run_dir, "config.yaml")), dict):
        raise ReportError(f"found no settings in {run_dir / 'config.yaml'}, expected a YAML file")
    lines = read_log(run_dir)
    validation = last_validation(lines)
    figures = {
        name: value
        for name, value in (validation or {}).items()
        if name.startswith(("val/", "health/", "distill/"))
    }
    if (overhead := overhead_share(lines)) is not None:
        figures["time/overhead_share"] = overhead
    return RunReport(
        run=run_dir.resolve().name,
        images=lines[-1]["images"],
        minutes=lines[-1]["seconds"] / 60,
        num_parameters=_num_parameters(run_dir),
        validated_at=None if validation is None else validation["images"],
        figures=figures,
        versions=read_json_record(run_dir, "versions.json"),
    )


def render_table(reports: Sequence[RunReport]) -> str:
    """A Markdown table, one run a line; a column that no run has is left out."""
    used = [name for name in COLUMNS if any(name in report.figures for report in reports)]
    headings = ["run", "images", "minutes", "parameters", *(COLUMNS[name][0] for name in used)]
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    for report in reports:
        cells = [report.run, f"{report.images}", f"{report.minutes:.1f}"]
        cells.append(f"{report.num_parameters / 1e6:.2f}M")
        rows.append(cells + [_cell(report, name) for name in used])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def render_json(reports: Sequence[RunReport]) -> str:
    """The same for programs, with every figure."""
    return json.dumps([asdict(report) for report in reports], indent=2)


def _cell(report: RunReport, name: str) -> str:
    value = report.figures.get(name)
    return MISSING if value is None else format(value, COLUMNS[name][1])


def _num_parameters(run_dir: Path) -> int:
    """Numbers in the averaged weights, from the file's header alone."""
    for folder in (*reversed(list_checkpoints(run_dir)), run_dir / BEST):
        weights = folder / "ema.safetensors"
        if weights.is_file():
            return sum(math.prod(tensor.shape) for tensor in stored_tensors(weights))
    raise ReportError(
        f"found no checkpoint in {run_dir}, expected a run that has saved one: let it train on "
        "until its first checkpoint"
    )


def _read(run_dir: Path, name: str) -> str:
    try:
        return (run_dir / name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(
            f"found no {name} in {run_dir}, expected the folder of a training run: give its "
            "run.output_dir"
        ) from None
