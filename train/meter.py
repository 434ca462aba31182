"""Means of a run's figures, and where its time went."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from eval.metrics import psnr_from_mse


class Meter:
    """Means over the steps since the last line of the log, and where the time went.

    Time counts as waiting for data, as bookkeeping, as neither part of a step (`paused`), or else
    as the step itself.

    Attributes:
        steps: since the last flush.
    """

    def __init__(self) -> None:
        self._section, self._since = "step", time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = defaultdict(int)  # a term may start between two lines
        self._spent: dict[str, float] = defaultdict(float)
        self.steps = 0

    @contextmanager
    def _inside(self, section: str) -> Iterator[None]:
        outer = self._section
        self._switch(section)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, section: str) -> None:
        now = time.monotonic()
        self._spent[self._section] += now - self._since
        self._section, self._since = section, now

    def waiting(self) -> AbstractContextManager[None]:
        """Count the time inside as waiting for data."""
        return self._inside("data")

    def logging(self) -> AbstractContextManager[None]:
        """Count the time inside as bookkeeping: logs, checkpoints."""
        return self._inside("log")

    def paused(self) -> AbstractContextManager[None]:
        """Leave the time inside out: held-out figures."""
        return self._inside("paused")

    def add(self, figures: Mapping[str, Tensor | float]) -> None:
        """Add the figures of one step; tensors stay where they are, so that nothing waits."""
        for name, value in figures.items():
            added = value.detach().float() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums[name] + added if name in self._sums else added
            self._counts[name] += 1
        self.steps += 1

    def flush(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over processes and steps, and begin anew.

        All processes must have added figures of the same names.

        Returns:
            What was added, `train/psnr` in dB where there is `loss/l2`, `time/step_seconds`, and
            the shares of it that went into data, the step and the log, which sum to 1.
        """
        assert self.steps > 0
        self._switch(self._section)
        names, device = sorted(self._sums), accelerator.device
        means = [torch.as_tensor(self._sums[n], device=device) / self._counts[n] for n in names]
        reduced = accelerator.reduce(torch.stack([mean.float() for mean in means]), "mean")
        figures: dict[str, float] = dict(zip(names, reduced.tolist(), strict=True))
        if "loss/l2" in figures:
            figures["train/psnr"] = psnr_from_mse(figures["loss/l2"], peak=2)
        parts = ("data", "step", "log")
        elapsed = sum(self._spent[part] for part in parts)
        figures["time/step_seconds"] = elapsed / self.steps
        figures |= {f"time/{part}_share": self._spent[part] / elapsed for part in parts}
        self._reset()
        return figures
