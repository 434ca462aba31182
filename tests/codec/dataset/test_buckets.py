"""Aspect-ratio buckets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.dataset.buckets import PreprocessingError, bucket_sizes, nearest_bucket

# Podell et al. 2023, appendix I: height and width of SDXL's buckets up to the square.
SDXL = """512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472
704x1408 704x1344 768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024
1024x1024"""


def test_the_rule_gives_the_published_list() -> None:
    narrow = [tuple(map(int, size.split("x"))) for size in SDXL.split()]
    expected = {*narrow, *((height, width) for width, height in narrow)}
    assert set(bucket_sizes(1024)) == expected
    assert len(bucket_sizes(1024)) == len(expected) == 41


@settings(max_examples=30)
@given(st.integers(64, 2048), st.sampled_from([32, 64]))
def test_buckets_have_nearly_one_area_and_come_in_pairs(size: int, multiple: int) -> None:
    try:
        sizes = bucket_sizes(size, multiple)
    except PreprocessingError:
        # Between the squares of 64 and 128, and the like, there is no area near enough.
        assert size < 8 * multiple
        return
    assert len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert 0.9 * size**2 <= width * height <= size**2
        assert (height, width) in sizes
    assert [width / height for width, height in sizes] == sorted(w / h for w, h in sizes)


def test_no_bucket_is_an_error() -> None:
    with pytest.raises(PreprocessingError, match="found no bucket for the size 100 with sides"):
        bucket_sizes(100)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_bucket_is_the_same_for_a_turned_image(width: int, height: int) -> None:
    sizes = bucket_sizes(512)
    across, down = nearest_bucket(width, height, sizes)
    turned = nearest_bucket(height, width, sizes)
    assert across * down == turned[0] * turned[1]
    aspect = width / height
    loss = max(across / down / aspect, aspect / (across / down))
    assert loss <= min(max(w / h / aspect, aspect / (w / h)) for w, h in sizes) * (1 + 1e-9)


def test_extreme_shapes_take_the_last_bucket() -> None:
    sizes = bucket_sizes(512)
    assert nearest_bucket(10_000, 10, sizes) == sizes[-1]
    assert nearest_bucket(10, 10_000, sizes) == sizes[0]
