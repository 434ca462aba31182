"""Several processes on one job, as `accelerate launch` and `torchrun` start them.

They share the units among themselves and need to agree only at the beginning and at the end. The
first one alone lists the source, holds the lock, and writes the manifest.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from codec.console import EXPECTED_ERRORS, error_sentence
from codec.errors import LatentCodecError

Result = TypeVar("Result")

_PATIENCE = timedelta(days=30)  # the first to finish waits for the last


class OtherProcessError(LatentCodecError):
    """Another process of the job failed, and has said why."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a job.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        local_rank: Number of this process on its machine.
        local_size: How many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    def first(self, work: Callable[[], Result]) -> Result:
        """Lets the first process do something; all get the result.

        Raises:
            OtherProcessError: It failed; in the first process its own error is raised.
        """
        error: BaseException | None = None
        result: Result | None = None
        if self.is_first:
            try:
                result = work()
            except EXPECTED_ERRORS as expected:
                error = expected
        if self.size > 1:
            import torch.distributed

            message = [(result, error_sentence(error) if error else None)]
            torch.distributed.broadcast_object_list(message, src=0)
            result, reason = message[0]
            if reason is not None and error is None:
                error = OtherProcessError(f"process 0: {reason}")
        if error is not None:
            raise error
        return result  # type: ignore[return-value] # the work's own type, which may hold None

    def everyone(self, work: Callable[[], Result]) -> list[Result]:
        """Lets every process do its part; all get the results in order.

        Raises:
            OtherProcessError: Another process failed. A process that failed raises its own error.
        """
        error: BaseException | None = None
        result: Result | None = None
        try:
            result = work()
        except EXPECTED_ERRORS as expected:
            error = expected
        parts: list[tuple[Result | None, str | None]] = [(result, None)]
        if self.size > 1:
            import torch.distributed

            parts = parts * self.size
            own = (result, error_sentence(error) if error else None)
            torch.distributed.all_gather_object(parts, own)
        if error is not None:
            raise error
        for rank, (_, reason) in enumerate(parts):
            if reason is not None:
                raise OtherProcessError(f"process {rank}: {reason}")
        return [found for found, _ in parts]  # type: ignore[misc]


@contextmanager
def join_group() -> Iterator[Group]:
    """Joins the processes that a launcher started with this one, or is alone.

    Raises:
        LatentCodecError: The launcher's environment is incomplete.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    import torch.distributed

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise LatentCodecError(
            f"found WORLD_SIZE={size} without {', '.join(missing)}, expected what accelerate "
            "launch and torchrun set; unset it, or start the job with one of them"
        )
    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Group(
            int(os.environ["RANK"]),
            size,
            int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
            int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        )
    finally:
        torch.distributed.destroy_process_group()
