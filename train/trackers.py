"""Accelerate's trackers (TensorBoard by default): which there are, and what they are given."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from codec.errors import LatentCodecError
from train.config import AnyConfig

PROJECT = "latent-codec"
"""What trackers call the project; TensorBoard's folder in that of the run."""

_PACKAGES = {"comet_ml": "comet-ml"}
"""Where a tracker's package is not called like the tracker."""


class TrackerError(LatentCodecError):
    """A tracker that the configuration asks for is not there."""


def tracker_names(config: AnyConfig) -> list[str]:
    """The trackers of a configuration, for `Accelerator(log_with=...)`.

    Accelerate would leave one out in silence whose package is missing.

    Raises:
        TrackerError: Accelerate does not know a tracker, or its package is not installed.
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    for name in config.run.trackers:
        if name not in known:
            raise TrackerError(
                f"found the unknown tracker {name!r} in run.trackers, expected some of "
                f"{', '.join(known)}"
            )
        if importlib.util.find_spec(name) is None:
            package = _PACKAGES.get(name, name)
            raise TrackerError(
                f"found no package {package!r}, which run.trackers asks for: install it with pip "
                f"install {package}, or leave {name} out (run.trackers=[] tracks nothing)"
            )
    return list(config.run.trackers)


def start_trackers(accelerator: Accelerator, config: AnyConfig) -> None:
    """Start the trackers that the accelerator was made with; they get the configuration."""
    accelerator.init_trackers(PROJECT)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # which would make a run of its own of it each time
            tracker.store_init_configuration(_flat(config))


def track_pictures(
    accelerator: Accelerator, pictures: Mapping[str, np.ndarray], images_seen: int
) -> None:
    """Give pictures, uint8 (H, W, 3), to the trackers that take some."""
    for tracker in accelerator.trackers:
        if not hasattr(tracker, "log_images"):
            continue
        # TensorBoard wants to be told the order of axes; others know no such argument.
        order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        batches = {name: pixels[None] for name, pixels in pictures.items()}
        tracker.log_images(batches, step=images_seen, **order)


def track_histogram(
    accelerator: Accelerator, name: str, values: Sequence[float], images_seen: int
) -> None:
    """Give the finite ones of some values to TensorBoard, if it is on, as a histogram."""
    finite = np.array([value for value in values if math.isfinite(value)])
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" and len(finite):
            tracker.writer.add_histogram(name, finite, global_step=images_seen)


def _flat(config: AnyConfig) -> dict[str, Any]:
    """`section.key` to a number or text; trackers take nothing else."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
    }
