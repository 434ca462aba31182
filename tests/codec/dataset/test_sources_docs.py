"""docs/dataset-sources.md says what is so."""

import re
from pathlib import Path
from typing import get_args

import pytest

from codec.dataset.buckets import bucket_sizes
from codec.dataset.columns import PATH_NAMES
from codec.dataset.options import Kind
from codec.dataset.sidecars import CAPTION_NAMES, LABEL_NAMES
from codec.images import MAX_PIXELS
from tests.codec.dataset.image_sets import jpeg, write_files

PAGE = (Path(__file__).resolve().parents[3] / "docs/dataset-sources.md").read_text("utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"photos/a/1.jpg": jpeg(height=80, width=120)})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(example, names)
    (plain, flipped) = names["records"]  # type: ignore[misc]
    assert plain[0].key == "a/1.jpg"
    assert plain[0].label == "a"
    assert flipped[0].key == "a/1.jpg@flip"
    assert plain[1].shape == (384, 640, 3)


def test_tables_and_numbers_are_those_of_the_code() -> None:
    for names in (PATH_NAMES, LABEL_NAMES, CAPTION_NAMES):
        assert f"| {', '.join(names)} |" in PAGE
    for kind in set(get_args(Kind)) - {"auto"}:
        assert f"| `{kind}` |" in PAGE
    assert f"these are the {len(bucket_sizes(1024))} shapes" in PAGE
    assert f"for 512 they are {len(bucket_sizes(512))}, from 256x1024" in PAGE
    assert f"more than {MAX_PIXELS:,} pixels" in PAGE
