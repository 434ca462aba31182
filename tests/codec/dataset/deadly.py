"""Workers that die, for the tests of what becomes of their tasks; processes import this."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec.dataset.local import Hands
from codec.dataset.pieces import Work


class DeadlyHands(Hands):
    """Dies over an image called "deadly", and once over one called "stumble"."""

    def __init__(self, argument: tuple[Work, bool, str]) -> None:
        work, apart, self._memory = argument
        super().__init__((work, apart))

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        for position, entry in enumerate(getattr(task, "entries", ())):
            note(position)
            memory = Path(self._memory)
            if "deadly" in entry.key and not hasattr(entry, "reason"):
                os.kill(os.getpid(), signal.SIGKILL)
            if "stumble" in entry.key and not memory.exists():
                memory.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task, note)


class DoomedHands:
    """Dies before it begins."""

    def __init__(self, argument: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        """Is never called."""


class FailingHands:
    """Raises an error of ours."""

    def __init__(self, argument: object) -> None:
        pass

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        raise ValueError(f"cannot do {task}")


class EchoHands:
    """Gives back what it gets."""

    def __init__(self, argument: object) -> None:
        pass

    def __call__(self, task: Any, note: Callable[[int], None]) -> Any:
        return task
