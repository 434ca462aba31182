"""What a run writes: its configuration, a log of JSON lines, and a progress bar."""

import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.metrics import psnr_from_mse
from train import state
from train.config import TrainConfig
from train.losses import LossTerms

PACKAGES = ("latent-codec", "torch", "diffusers", "accelerate")


def save_config(config: TrainConfig, run_dir: Path) -> None:
    """Write the resolved configuration and the versions that run it beside the checkpoints."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")
    versions = {name: version(name) for name in PACKAGES}
    versions |= {"python": platform.python_version(), "processor": processor_name()}
    (run_dir / "versions.json").write_text(json.dumps(versions, indent=2), encoding="utf-8")


def processor_name() -> str:
    """What computes: the GPU's name, or the CPU's and its threads."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


class Meter:
    """Means over the steps since the last line of the log, and where the time went."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)  # a term may start between two lines
        self.steps = 0
        self._wait = 0.0
        self._since = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._wait += time.monotonic() - start

    def add(self, terms: LossTerms, gradient_norm: float, learning_rate: float) -> None:
        """Add one step."""
        figures = {name: value.item() for name, value in terms.terms.items()}
        figures |= {"loss/total": terms.total.item(), "optim/gradient_norm": gradient_norm}
        for name, value in figures.items():
            self._sums[name] += value
            self._counts[name] += 1
        self._rate = learning_rate
        self.steps += 1

    def flush(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over processes and steps, and begin anew."""
        elapsed = time.monotonic() - self._since
        values = torch.tensor([total / self._counts[name] for name, total in self._sums.items()])
        reduced = accelerator.reduce(values.to(accelerator.device), "mean").tolist()
        figures = dict(zip(self._sums, reduced, strict=True))
        figures["train/psnr"] = psnr_from_mse(figures["loss/l2"], peak=2)
        figures["optim/learning_rate"] = self._rate
        figures["time/step_seconds"] = elapsed / self.steps
        figures["time/data_share"] = self._wait / elapsed
        self._reset()
        return figures


class RunLog:
    """The progress bar and log.jsonl in the run's folder; only the first process writes."""

    def __init__(self, run_dir: Path, config: TrainConfig, accelerator: Accelerator) -> None:
        self._main = accelerator.is_main_process
        self._path = run_dir / "log.jsonl"
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._main,
        )
        self._task = self._bar.add_task("train", total=config.run.max_images, status="")
        self._started: tuple[float, int] | None = None
        self._status: dict[str, Any] = {}

    def __enter__(self) -> "RunLog":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, progress: state.Progress) -> None:
        """Move the bar."""
        now = time.monotonic()
        if self._started is None:
            self._started = (now, progress.images_seen)
        seconds, images = now - self._started[0], progress.images_seen - self._started[1]
        parts = [f"{images / seconds:.1f} images/s"] if images else []
        if "train/psnr" in self._status:
            loss, psnr = self._status["loss/total"], self._status["train/psnr"]
            parts += [f"loss {loss:.4f}", f"PSNR {psnr:.2f} dB"]
        self._bar.update(self._task, completed=progress.images_seen, status=", ".join(parts))

    def write(self, progress: state.Progress, figures: dict[str, float]) -> None:
        """Append one line of figures to the log."""
        self._status |= figures
        if not self._main:
            return
        line = {
            "images": progress.images_seen,
            "step": progress.steps,
            "seconds": round(progress.seconds, 1),
            **{name: round(value, 6) for name, value in figures.items()},
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if not self._console.is_terminal or any(name.startswith("val/") for name in figures):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._console.print(f"{progress.images_seen} images: {shown}", highlight=False)
