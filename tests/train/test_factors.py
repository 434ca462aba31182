"""Each factor changes what it is named after, and nothing else."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from train.samples.factors import BACKGROUND, SHAPES, FactorImages, render
from train.samples.pool import open_sources
from train.samples.sources import DataError
from train.sections import DataConfig

MIDDLE = (2, 4, 3, 8, 8, 3)


def silhouette(image: np.ndarray) -> np.ndarray:
    return (image != BACKGROUND).any(-1)


def centroid(image: np.ndarray) -> np.ndarray:
    return np.argwhere(silhouette(image)).mean(0)


def changed(**values: int) -> np.ndarray:
    return render([values.get(n, v) for n, v in zip(FactorImages.names, MIDDLE, strict=True)], 64)


def test_images_are_the_same_on_every_machine() -> None:
    images = FactorImages(40)
    digest = hashlib.sha256(b"".join(images.load(i).tobytes() for i in range(40)))
    assert digest.hexdigest()[:16] == "fb389198c9c8003c"
    assert images.values([0, 1]).tolist() == [[1, 4, 3, 9, 7, 1], [0, 5, 0, 7, 6, 1]]


def test_ranges_are_disjoint_and_cover_all_settings() -> None:
    total = math.prod(FactorImages.sizes)
    whole = FactorImages(total).values(np.arange(total))
    assert whole.shape == (total, 6)
    numbers = np.ravel_multi_index(tuple(whole.T), FactorImages.sizes)
    assert len(np.unique(numbers)) == total
    held_out = FactorImages(100, start=1000)
    np.testing.assert_array_equal(held_out.values(range(100)), whole[1000:1100])
    np.testing.assert_array_equal(held_out.load(7), FactorImages(2000).load(1007))
    assert (FactorImages(100, seed=1).values(range(100)) != whole[:100]).any()
    with pytest.raises(DataError, match=f"found {total + 1} rendered images asked for"):
        FactorImages(2, start=total - 1)


def test_neighbouring_settings_look_different() -> None:
    smallest = [0, 8, 0, 3, 4, 0]  # a dark hue: changes are seen the least
    for shape in range(len(SHAPES)):
        seen = {render([shape, *smallest[1:]], 64).tobytes()}
        for factor in range(1, 6):
            values = [shape, *smallest[1:]]
            values[factor] += 1
            seen.add(render(values, 64).tobytes())
        seen |= {render([shape, 8, 0, 3, 4, angle], 64).tobytes() for angle in range(10)}
        assert len(seen) == 1 + 5 + 8  # the first and the second angle are in both


def test_hue_leaves_the_silhouette() -> None:
    images = [changed(hue=hue) for hue in range(FactorImages.sizes[1])]
    assert all((silhouette(image) == silhouette(images[0])).all() for image in images)
    colours = {tuple(image[32, 32]) for image in images}
    assert len(colours) == len(images)


def test_scale_grows_the_shape_in_place() -> None:
    images = [changed(scale=scale) for scale in range(FactorImages.sizes[2])]
    areas = [silhouette(image).sum() for image in images]
    assert all(b > 1.1 * a for a, b in itertools.pairwise(areas))
    assert np.ptp([centroid(image) for image in images], axis=0).max() < 1.5


@pytest.mark.parametrize(("factor", "axis"), [("x", 1), ("y", 0)])
def test_position_moves_along_its_axis(factor: str, axis: int) -> None:
    centres = np.array([centroid(changed(**{factor: place})) for place in range(16)])
    steps = np.diff(centres, axis=0)
    assert (steps[:, axis] > 1).all()
    assert np.abs(steps[:, 1 - axis]).max() < 0.1


def test_rotation_keeps_the_area_and_the_centre() -> None:
    images = [changed(rotation=angle) for angle in range(10)]
    weights = [np.abs(image.astype(int) - BACKGROUND).sum() for image in images]
    assert np.ptp(weights) < 0.03 * np.mean(weights)
    assert len({image.tobytes() for image in images}) == 10


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_shapes_stay_inside_at_every_size(size: int) -> None:
    for shape in range(len(SHAPES)):
        for place in (0, 15):
            for angle in (0, 5):
                image = render([shape, 0, 5, place, place, angle], size)
                assert image.shape == (size, size, 3)
                seen = silhouette(image)
                assert seen.any()
                border = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
                assert size < 64 or not border.any()


def test_factors_are_a_source_with_shapes_as_classes() -> None:
    pool = open_sources(DataConfig(factors=50, crop_size=32, labels=True))
    images = FactorImages(50, 32)
    assert len(pool) == 50
    assert pool.classes == SHAPES
    assert [pool.label(i) for i in range(50)] == images.values(range(50))[:, 0].tolist()
    np.testing.assert_array_equal(pool.load(3), images.load(3))
    assert pool.load(3).shape == (32, 32, 3)
    assert len({pool.key(i) for i in range(50)}) == 50
