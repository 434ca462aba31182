"""Images rendered from six known factors, to measure what each latent channel stands for.

In the spirit of dSprites (Matthey et al. 2017, "dSprites: Disentanglement testing Sprites
dataset"), but in colour and anti-aliased, and without its repetitions: angles stay below the
quarter turn that maps a square to itself, so that no two settings of the factors give the same
picture. Rendering is arithmetic in float64 on fixed sample points, the same on every machine.
"""

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from codec.images import Pixels
from train.samples.sources import DataError

SHAPES = ("square", "ellipse", "heart", "triangle")
HUES = 10  # 30 degrees apart, red to violet: the circle stays open, so that hue has two ends
SCALES = 6
PLACES = 16
ANGLES = 10

BACKGROUND = (30, 32, 38)
SATURATION, VALUE = 0.78, 0.96
RADIUS = (0.13, 0.25)  # of the circle around a shape, in image sides
CENTRE = (0.27, 0.73)  # so that no shape touches the border
SAMPLES = 4  # a pixel and axis

Coordinates = npt.NDArray[np.float64]


def _square(x: Coordinates, y: Coordinates) -> npt.NDArray[np.bool_]:
    return np.maximum(np.abs(x), np.abs(y)) <= math.sqrt(0.5)


def _ellipse(x: Coordinates, y: Coordinates) -> npt.NDArray[np.bool_]:
    return x**2 + (y / 0.55) ** 2 <= 1


def _heart(x: Coordinates, y: Coordinates) -> npt.NDArray[np.bool_]:
    """The sextic (x^2 + y^2 - 1)^3 = x^2 y^3, turned point down and fitted into the circle."""
    x, y = x * 1.26, 0.24 - y * 1.26
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


def _triangle(x: Coordinates, y: Coordinates) -> npt.NDArray[np.bool_]:
    """Equilateral, its corners on the circle, one of them up."""
    return (y <= 0.5) & (np.abs(x) * math.sqrt(3) <= y + 1)


_INSIDE: dict[str, Callable[[Coordinates, Coordinates], npt.NDArray[np.bool_]]] = {
    "square": _square,
    "ellipse": _ellipse,
    "heart": _heart,
    "triangle": _triangle,
}


class FactorImages:
    """A source of rendered images; number i has the i-th settings of a fixed shuffled order.

    Different ranges of `start` and `count` share no image: one is for training, another held out.

    Args:
        count: how many images.
        size: side of an image in pixels.
        start: place of the first one in the order.
        seed: of the order.

    Attributes:
        names: of the factors.
        sizes: how many values each has.
        classes: the shapes, which are the images' class labels.

    Raises:
        DataError: there are fewer settings than `start + count`.
    """

    names = ("shape", "hue", "scale", "x", "y", "rotation")
    sizes = (len(SHAPES), HUES, SCALES, PLACES, PLACES, ANGLES)

    def __init__(self, count: int, size: int = 64, *, start: int = 0, seed: int = 0) -> None:
        total = math.prod(self.sizes)
        if start + count > total:
            raise DataError(
                f"found {start + count} rendered images asked for, expected at most {total} "
                "different ones: lower data.factors"
            )
        self.name = f"{count} rendered images"
        self.classes: tuple[str, ...] = SHAPES
        self.size = size
        self._settings = np.random.default_rng(seed).permutation(total)[start : start + count]

    def __len__(self) -> int:
        return len(self._settings)

    def key(self, i: int) -> str:
        return f"factors#{self._settings[i]}"

    def size_bytes(self, i: int) -> int:
        return 3 * self.size**2

    def label(self, i: int) -> int:
        return int(self.values(i)[0])

    def values(self, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Factor values of images, int64 (..., 6) in 0..sizes, for numbers of any shape (...)."""
        settings = self._settings[np.asarray(numbers)]
        return np.stack(np.unravel_index(settings, self.sizes), axis=-1)

    def load(self, i: int) -> Pixels:
        return render(self.values(i).tolist(), self.size)


def render(values: Sequence[int], size: int) -> Pixels:
    """Draw one shape on a plain ground: uint8 (size, size, 3).

    Args:
        values: one of each of `FactorImages.names`, below `FactorImages.sizes`.
        size: side of the image in pixels.
    """
    shape, hue, scale, column, row, angle = values
    radius = size * _between(*RADIUS, scale, SCALES)
    x, y = (size * _between(*CENTRE, place, PLACES) for place in (column, row))
    coverage = _coverage(SHAPES[shape], x, y, radius, math.pi / 2 * angle / ANGLES, size)
    colour = colorsys.hsv_to_rgb(hue * 30 / 360, SATURATION, VALUE)
    foreground = np.array([round(255 * channel) for channel in colour])
    mixed = coverage[..., None] * foreground + (SAMPLES**2 - coverage[..., None]) * BACKGROUND
    return ((mixed + SAMPLES**2 // 2) // SAMPLES**2).astype(np.uint8)


def _coverage(
    shape: str, x: float, y: float, radius: float, angle: float, size: int
) -> npt.NDArray[np.int64]:
    """How many of its sample points a shape covers in each pixel, int64 (size, size)."""
    columns, rows = (slice(math.floor(c - radius), math.ceil(c + radius)) for c in (x, y))
    across = (_sample_points(columns) - x) / radius
    down = (_sample_points(rows)[:, None] - y) / radius
    cosine, sine = math.cos(angle), math.sin(angle)
    inside = _INSIDE[shape](cosine * across + sine * down, cosine * down - sine * across)
    height, width = (extent // SAMPLES for extent in inside.shape)
    counts = inside.reshape(height, SAMPLES, width, SAMPLES).sum(axis=(1, 3))
    coverage = np.zeros((size, size), dtype=np.int64)
    coverage[rows, columns] = counts
    return coverage


def _sample_points(pixels: slice) -> Coordinates:
    """Coordinates of the sample points of a range of pixels, (SAMPLES * length,)."""
    start, stop = SAMPLES * pixels.start, SAMPLES * pixels.stop
    return (np.arange(start, stop) + 0.5) / SAMPLES


def _between(first: float, last: float, place: int, count: int) -> float:
    return first + (last - first) * place / (count - 1)
