"""Ends a run on request: Ctrl-C and SIGTERM finish the step and save; a second one kills."""

import signal
from types import FrameType, TracebackType

WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Watches the signals inside its context.

    Attributes:
        received: whether one came.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous = {number: signal.getsignal(number) for number in WATCHED}

    def __enter__(self) -> "StopSignals":
        for number in WATCHED:
            signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = True
        signal.signal(number, self._previous[signal.Signals(number)])
