"""How a job is run: which engine, how many workers, when it stops. None of it changes the output.

No torch here: the command line imports this for its help.
"""

from dataclasses import dataclass
from enum import StrEnum


class Engine(StrEnum):
    """What does the work."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class Running:
    """How a job is run.

    Attributes:
        engine: Where the work is done.
        workers: Processes of the local engine, or most actors of Ray; None for what the machine
            or the cluster has.
        ray_address: Of a cluster; None for one on this machine.
        gpus_per_worker: That an actor of Ray takes; None for one where the model runs on GPUs.
        max_errors: Most images that may fail; None for any number.
        overwrite: Remove the dataset that is there.
        is_shown: Whether progress is shown.
    """

    engine: Engine = Engine.LOCAL
    workers: int | None = None
    ray_address: str | None = None
    gpus_per_worker: float | None = None
    max_errors: int | None = None
    overwrite: bool = False
    is_shown: bool = True
