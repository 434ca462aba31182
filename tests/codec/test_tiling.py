"""Spans cover a length exactly once, each read with its margin where there is more."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec.tiling import map_tiles, spans


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 30))
def test_spans_cover_once_with_margins(length: int, tile: int, margin: int) -> None:
    found = spans(length, tile, margin)
    assert [cell for span in found for cell in range(span.start, span.stop)] == list(range(length))
    for span in found:
        assert span.stop - span.start <= tile
        assert span.read_start == max(0, span.start - margin)
        assert span.read_stop == min(length, span.stop + margin)
        kept = list(range(span.read_start, span.read_stop))[span.keep()]
        assert kept == list(range(span.start, span.stop))


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 7),
    st.sampled_from([(1, 1), (2, 1), (1, 3)]),
)
def test_map_tiles_joins_what_run_gives(
    height: int, width: int, tile: int, scales: tuple[int, int]
) -> None:
    in_scale, out_scale = scales

    def run(x: torch.Tensor) -> torch.Tensor:
        small = x[..., ::in_scale, ::in_scale]
        return small.repeat_interleave(out_scale, -1).repeat_interleave(out_scale, -2)

    x = torch.rand(1, 2, height * in_scale, width * in_scale)
    joined = map_tiles(run, x, in_scale=in_scale, out_scale=out_scale, margin=2, tile=tile)
    assert torch.equal(joined, run(x))


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_tiles_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected a length and a tile of at least 1"):
        spans(*arguments)
