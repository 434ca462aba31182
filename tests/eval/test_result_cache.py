"""Figures survive the process that measured them, and a cut line is measured again."""

from pathlib import Path

import pytest

from eval.file_codecs import digest
from eval.result_cache import ResultCache


def test_figures_are_found_by_every_part_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.jsonl"
    ResultCache(path).put({"psnr": 1 / 3, "lpips": None}, "jpeg", "10")
    found = ResultCache(path)
    assert found.get("jpeg", "10") == {"psnr": 1 / 3, "lpips": None}
    for other in [("jpeg", "1"), ("jpeg", "10", ""), ("jpeg10",), ("jpeg1", "0")]:
        assert found.get(*other) is None


def test_the_later_figures_count(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "c")
    cache.put({"bpp": 1}, "a")
    cache.put({"bpp": 2}, "a")
    assert ResultCache(tmp_path / "c").get("a") == {"bpp": 2}


@pytest.mark.parametrize("tail", [b'{"key": "ab', b"{}\n", b"[1]\n", b'"x"\n', b"\xff\n"])
def test_a_damaged_last_line_costs_only_itself(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "c"
    ResultCache(path).put({"bpp": 1}, "a")
    with path.open("ab") as stream:
        stream.write(tail)
    again = ResultCache(path)
    assert len(again) == 1
    again.put({"bpp": 2}, "b")
    last = ResultCache(path)
    assert (last.get("a"), last.get("b")) == ({"bpp": 1}, {"bpp": 2})


def test_infinity_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ResultCache(tmp_path / "c").put({"psnr": float("inf")}, "a")
    assert ResultCache(tmp_path / "c").get("a") is None


def test_parts_of_a_digest_do_not_run_together() -> None:
    names = [digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")]
    assert len(set(names)) == 4
    assert digest("abc") == digest(b"abc")
