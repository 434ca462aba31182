"""Listing and planning cost disk, not memory: ten times the images, the same peak."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.codec.dataset.image_sets import png, write_files

STATUS = Path("/proc/self/status")

# Peak resident size in KiB of planning and reading back, in a process of its own: sqlite and
# pyarrow allocate where tracemalloc does not look, and `getrusage` begins at the size of the
# process that started this one.
PROGRAM = """
import re, sys
from pathlib import Path
from codec.dataset.options import SourceOptions
from codec.dataset.plan import iter_plan, write_plan
from codec.dataset.sources import open_source

place, plan, key = sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None
summary = write_plan(open_source(place, SourceOptions(key_column=key)), plan, 1024)
assert sum(1 for _ in iter_plan(plan)) == summary.num_items
print(summary.num_items, re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def peak(place: Path, plan: Path, key: str = "") -> tuple[int, float]:
    """Number of images and peak memory in MiB of planning a source."""
    if not STATUS.is_file():
        pytest.skip("no /proc, which tells the peak memory of a process")
    command = [sys.executable, "-c", PROGRAM, str(place), str(plan), key]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    count, kibibytes = map(int, found.stdout.split())
    return count, kibibytes / 1024


def write_manifest(root: Path, count: int) -> Path:
    """A manifest of one small image under many keys."""
    path = root / f"{count}.jsonl"
    with path.open("w") as stream:
        for number in range(count):
            stream.write(
                f'{{"image": "1.png", "id": "images/{number:08}", "text": "no {number}"}}\n'
            )
    return path


def test_memory_does_not_grow_with_a_folder(tmp_path: Path) -> None:
    counts = (1_000, 20_000)
    for count in counts:
        folder = tmp_path / str(count)
        folder.mkdir()
        first = folder / "0.png"
        first.write_bytes(png())
        for number in range(1, count):
            (folder / f"{number}.png").hardlink_to(first)
    small, large = (peak(tmp_path / str(count), tmp_path / "plan") for count in counts)
    assert (small[0], large[0]) == counts
    # What grows are the names that are sorted at once; all items at once would be 15 MB.
    assert large[1] - small[1] < 6


@pytest.mark.slow
def test_memory_does_not_grow_with_a_manifest(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": png()})
    small, large = (
        peak(write_manifest(tmp_path, count), tmp_path / f"plan{count}", "id")
        for count in (20_000, 200_000)
    )
    assert (small[0], large[0]) == (20_000, 200_000)
    # What grows is sqlite's cache, up to its bound of 16 MiB; all items at once would be 130 MB.
    assert large[1] - small[1] < 20


@pytest.mark.slow
def test_memory_does_not_grow_with_tars_and_parquet(tmp_path: Path) -> None:
    import io
    import tarfile

    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    data = png(height=1, width=1)
    for count in (10_000, 100_000):
        with tarfile.open(tmp_path / f"{count}.tar", "w") as archive:
            for number in range(count):
                info = tarfile.TarInfo(f"{number:08}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                archive.members.clear()  # type: ignore[attr-defined] # else the test needs memory
        table = arrow.table({"image": [data] * count, "label": list(range(count))})
        parquet.write_table(table, tmp_path / f"{count}.parquet", row_group_size=10_000)
    for ending in ("tar", "parquet"):
        small, large = (
            peak(tmp_path / f"{count}.{ending}", tmp_path / f"plan-{ending}-{count}")
            for count in (10_000, 100_000)
        )
        assert (small[0], large[0]) == (10_000, 100_000)
        assert large[1] - small[1] < 20
