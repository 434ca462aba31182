"""What a run writes while it trains: progress bar, log.jsonl, health.json, pictures, trackers."""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from codec.outputs import atomic_output
from train import state
from train.config import AnyConfig
from train.plain_json import json_text
from train.trackers import start_trackers, track_histogram, track_pictures

LOG_FILE = "log.jsonl"
DETAILS_FILE = "health.json"
PICTURES_KEPT = 3
"""Pictures of each name that stay on the disk; trackers keep them all."""

# A number that is a word of its own: no part of a name or a path.
_FIGURE = re.compile(r"(?<![\w/#.-])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w/]|\.\w)")


class RunLog:
    """The progress bar, log.jsonl, health.json, pictures and trackers; the first process writes.

    Args:
        run_dir: the run's folder; what is there is appended to.
        config: of the run; trackers that store configurations get it.
        accelerator: its trackers are started and ended with the context.
    """

    def __init__(self, run_dir: Path, config: AnyConfig, accelerator: Accelerator) -> None:
        self._config = config
        self._accelerator = accelerator
        self._is_main = accelerator.is_main_process
        self._run_dir = run_dir
        self._path = run_dir / LOG_FILE
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._is_main,
        )
        self._task = self._bar.add_task("train", total=config.run.max_images, status="")
        self._started: tuple[float, int] | None = None
        self._status: dict[str, Any] = {}
        self._warned: set[str] = set()

    def __enter__(self) -> "RunLog":
        if self._is_main:
            _end_last_line(self._path)
        start_trackers(self._accelerator, self._config)
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._accelerator.end_training()

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
        if "loss/bits_per_symbol" in self._status:
            parts.append(f"{self._status['loss/bits_per_symbol']:.3f} bits a symbol")
        self._bar.update(self._task, completed=progress.images_seen, status=", ".join(parts))

    def write(self, progress: state.Progress, figures: Mapping[str, float]) -> None:
        """Append one line of figures to the log and give them to the trackers.

        JSON has no number for one that is not finite: it stands in the log as null.
        """
        self._status |= figures
        if not self._is_main:
            return
        self._append(progress, {name: float(f"{value:.7g}") for name, value in figures.items()})
        self._accelerator.log(dict(figures), step=progress.images_seen)
        if not self._console.is_terminal or any(name.startswith("val/") for name in figures):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._console.print(
                f"{progress.images_seen} images: {shown}", highlight=False, soft_wrap=True
            )

    def warn(self, progress: state.Progress, messages: Iterable[str]) -> None:
        """Say each message once, on the console and in the log.

        A message that differs from an earlier one in its figures alone is the same message.
        """
        for message in messages:
            kind = _FIGURE.sub("#", message)
            if kind in self._warned or not self._is_main:
                continue
            self._warned.add(kind)
            self._append(progress, {"warning": message})
            self._console.print(
                f"warning: {message}", highlight=False, markup=False, soft_wrap=True
            )

    def pictures(self, progress: state.Progress, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures, uint8 (H, W, 3), into the run's folder and give them to the trackers."""
        if not self._is_main:
            return
        folder = self._run_dir / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in pictures.items():
            stem = name.replace("/", "-")
            with atomic_output(folder / f"{stem}-{progress.images_seen:09d}.png") as stream:
                PIL.Image.fromarray(pixels).save(stream, format="PNG")
            written = sorted(folder.glob(f"{stem}-{'[0-9]' * 9}.png"))
            for path in written[:-PICTURES_KEPT]:
                path.unlink()
        track_pictures(self._accelerator, pictures, progress.images_seen)

    def details(self, progress: state.Progress, details: Mapping[str, Any]) -> None:
        """Replace health.json by what a validation found beside its figures.

        TensorBoard, if it is on, also gets a histogram of the bits of each channel.

        Args:
            progress: of the run; the file says how many images were seen.
            details: `train.validation.Validation.details`; nothing is written if empty.
        """
        if not self._is_main or not details:
            return
        with atomic_output(self._run_dir / DETAILS_FILE) as stream:
            stream.write(json_text({"images": progress.images_seen, **details}).encode())
        bits = details.get("kl_bits_by_channel", ())
        track_histogram(self._accelerator, "health/kl_bits_by_channel", bits, progress.images_seen)

    def _append(self, progress: state.Progress, content: Mapping[str, Any]) -> None:
        line = {
            "images": progress.images_seen,
            "step": progress.steps,
            "seconds": round(progress.seconds, 1),
            **content,
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json_text(line) + "\n")


def _end_last_line(path: Path) -> None:
    """End the line that a kill cut short, so that the next one stands alone."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")
