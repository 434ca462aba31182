"""The plan: units, duplicates, what a fingerprint sees, and what changed since a job began."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.dataset.duplicates import KeyRegister
from codec.dataset.items import Item, SourceError, entry_from_line, entry_to_line
from codec.dataset.options import SourceOptions
from codec.dataset.plan import (
    PlanError,
    PlanSummary,
    SourceChangedError,
    compare_source,
    iter_plan,
    make_plan,
    read_summary,
    read_unit,
    write_plan,
)
from codec.dataset.preprocess import Preprocessing
from codec.dataset.sources import open_source, read_item
from codec.shards.records import ItemError
from tests.codec.dataset.image_sets import png, write_files, write_lines


class Fixed:
    """A source of given entries."""

    notes = ()
    classes = ()

    def __init__(self, entries: list[Item | ItemError]) -> None:
        self.entries = entries
        self.ignored: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        return {}

    def iter_items(self) -> Iterator[Item | ItemError]:
        yield from self.entries


def item(key: str, **fields: Any) -> Item:
    return Item(
        **{"key": key, "source": key, "locator": {"kind": "file", "path": f"/{key}"}, **fields}
    )


LETTERS: list[Item | ItemError] = [item(letter, stamp="1") for letter in "abcdefg"]


def test_units_hold_so_many_entries_in_order(tmp_path: Path) -> None:
    entries = [*LETTERS]
    entries[2] = ItemError("c", "c", "broken")
    ticks: list[None] = []
    summary = write_plan(Fixed(entries), tmp_path, 3, advance=lambda: ticks.append(None))
    assert (summary.num_units, summary.num_items, summary.num_errors) == (3, 6, 1)
    assert [len(read_unit(tmp_path, unit)) for unit in range(3)] == [3, 3, 1]
    assert list(iter_plan(tmp_path)) == entries
    assert read_summary(tmp_path) == summary
    assert len(ticks) == 7
    assert sorted(os.listdir(tmp_path)) == [
        "plan-000000.jsonl",
        "plan-000001.jsonl",
        "plan-000002.jsonl",
        "plan.json",
    ]


def test_a_key_that_comes_again_is_an_error_where_it_stands(tmp_path: Path) -> None:
    source = Fixed([item("a"), item("b"), item("a", source="other/a"), item("c")])
    summary = write_plan(source, tmp_path, 2)
    assert (summary.num_items, summary.num_errors) == (3, 1)
    error, last = read_unit(tmp_path, 1)
    assert error == ItemError(
        "a",
        "other/a",
        "other/a has the key 'a', which an earlier image has: expected every key once",
    )
    assert last == item("c")


def test_copies_must_not_have_the_names_of_other_images(tmp_path: Path) -> None:
    entries = [item("a@1"), item("a"), item("b"), item("b@flip"), item("c@7"), item("c")]
    endings = Preprocessing(size=8, crops=2, crop_mode="random", flip=True).key_endings()
    write_plan(Fixed([*entries]), tmp_path, 10, endings)
    wrong = [entry for entry in iter_plan(tmp_path) if isinstance(entry, ItemError)]
    assert [error.key for error in wrong] == ["a", "b@flip"]
    assert "a copy of 'b' would be called alike" in wrong[1].reason
    assert write_plan(Fixed([*entries]), tmp_path, 10).num_errors == 0


@given(st.lists(st.sampled_from(["a", "a@1", "a@flip", "a@1@flip", "a@1@1", "b", "b@1@flip"])))
def test_accepted_keys_give_different_records(tmp_path_factory: Any, names: list[str]) -> None:
    endings = ("", "@flip", "@1", "@1@flip")
    path = tmp_path_factory.mktemp("register") / "keys"
    with KeyRegister(path, endings) as register:
        accepted = [name for name in names if register.clash(name) is None]
    records = [name + ending for name in accepted for ending in endings]
    assert len(set(records)) == len(records)
    assert not path.exists()


def test_a_source_without_images_is_refused_with_its_first_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found no image that can be encoded: there is none"):
        write_plan(Fixed([]), tmp_path)
    with pytest.raises(SourceError, match="can be encoded: it is broken"):
        write_plan(Fixed([ItemError("a", "a", "it is broken")]), tmp_path)
    assert read_summary(tmp_path) is None


def test_entries_survive_their_lines() -> None:
    entries = [
        item("k"),
        item("k\n\udce9", source="\ud800", label="", caption="ü", stamp="1-2"),
        ItemError("a", "b", "c"),
    ]
    for entry in entries:
        line = entry_to_line(entry)
        assert line.isascii()
        assert "\n" not in line
        assert entry_from_line(line) == entry


def test_the_fingerprint_is_of_what_decides_the_records(tmp_path: Path) -> None:
    def fingerprint(*entries: Item | ItemError) -> str:
        return write_plan(Fixed([*entries]), tmp_path, 10).fingerprint

    base = item("a", label="x", caption="y", stamp="1")
    same = fingerprint(base)
    assert fingerprint(replace(base, locator={"kind": "file", "path": "/moved"})) == same
    for field in ("key", "source", "label", "caption", "stamp"):
        assert fingerprint(replace(base, **{field: "new"})) != same
    broken = fingerprint(base, ItemError("b", "b", "one reason"))
    assert broken != same
    assert fingerprint(base, ItemError("b", "b", "another")) == broken
    assert fingerprint(base, item("b")) != fingerprint(item("b"), base)


def test_a_moved_source_is_the_same_and_is_found_at_its_new_place(tmp_path: Path) -> None:
    old = write_files(tmp_path / "old", {"a/1.png": png(1), "2.png": png(2)})
    plan = tmp_path / "plan"
    first = make_plan(open_source(old), plan, 1)
    old.rename(tmp_path / "new")
    assert make_plan(open_source(tmp_path / "new"), plan, 1) == first
    assert [read_item(entry) for entry in iter_plan(plan)] == [png(2), png(1)]  # type: ignore[arg-type]
    assert not (plan / "next").exists()


CHANGES = [
    ([*LETTERS, item("h"), item("i")], "2 images were added (first 'h')"),
    ([item("0"), *LETTERS], "1 image was added ('0')"),
    (LETTERS[1:-1], "2 images were removed (first 'a')"),
    (LETTERS[:2] + LETTERS[3:], "1 image was removed ('c')"),
    ([item("a", stamp="2"), *LETTERS[1:]], "1 image has changed ('a', its size or time of change)"),
    (
        [item("a", stamp="1", label="l", caption="c"), *LETTERS[1:]],
        "1 image has changed ('a', its label and caption)",
    ),
    (
        [item("a", stamp="2"), *LETTERS[2:], item("h")],
        "1 image was added ('h'), 1 image was removed ('b'), 1 image has changed ('a', its size",
    ),
    (LETTERS[::-1], "the order has changed (first 'g')"),
    ([*LETTERS, ItemError("h", "h", "broken")], "its list of errors has changed"),
]


@pytest.mark.parametrize(("entries", "said"), CHANGES)
def test_a_changed_source_is_refused_in_words(
    tmp_path: Path, entries: list[Item | ItemError], said: str
) -> None:
    plan = tmp_path / "plan"
    first = make_plan(Fixed(LETTERS), plan, 2)
    with pytest.raises(SourceChangedError) as caught:
        make_plan(Fixed(entries), plan, 2)
    message = str(caught.value)
    assert message.startswith("the source has changed since this job began: ")
    assert said in message
    assert "--overwrite" in message
    assert read_summary(plan) == first
    assert list(iter_plan(plan)) == LETTERS
    assert make_plan(Fixed(LETTERS), plan, 2) == first


def test_units_of_another_size_are_refused(tmp_path: Path) -> None:
    make_plan(Fixed(LETTERS), tmp_path, 2)
    with pytest.raises(SourceChangedError, match="units held 2 images, now 3"):
        make_plan(Fixed(LETTERS), tmp_path, 3)


def test_without_the_old_plan_numbers_are_compared(tmp_path: Path) -> None:
    old = PlanSummary(1, 5, 0, 10, "0" * 64)
    new = write_plan(Fixed(LETTERS), tmp_path, 10)
    for directory in (None, tmp_path / "gone"):
        found = compare_source(old, new, directory, tmp_path)
        assert found.startswith("it listed 5 images and 0 errors, now 7 and 0")


def test_a_file_that_is_touched_or_grows_is_seen(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", {"1.png": png(1), "2.png": png(2)})
    make_plan(open_source(root), tmp_path / "plan")
    (root / "2.png").write_bytes(png(3) + b"more")
    with pytest.raises(SourceChangedError, match=r"'2\.png', its size or time of change"):
        make_plan(open_source(root), tmp_path / "plan")


def test_a_plan_that_was_not_finished_is_written_anew(tmp_path: Path) -> None:
    class Failing(Fixed):
        def iter_items(self) -> Iterator[Item | ItemError]:
            yield from self.entries
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make_plan(Failing([*LETTERS, *(item(f"{n}") for n in range(9))]), tmp_path, 2)
    assert read_summary(tmp_path) is None
    summary = make_plan(Fixed(LETTERS), tmp_path, 2)
    assert list(iter_plan(tmp_path)) == LETTERS
    with pytest.raises(OSError, match="No space left"):
        make_plan(Failing(LETTERS), tmp_path, 2)
    assert make_plan(Fixed(LETTERS), tmp_path, 2) == summary


def test_a_damaged_plan_says_so(tmp_path: Path) -> None:
    write_plan(Fixed(LETTERS), tmp_path, 3)
    (tmp_path / "plan-000001.jsonl").write_text('{"key": 1')
    with pytest.raises(PlanError, match=r"plan-000001\.jsonl is missing or damaged"):
        list(iter_plan(tmp_path))
    with pytest.raises(PlanError, match=r"plan-000009\.jsonl is missing or damaged"):
        read_unit(tmp_path, 9)
    (tmp_path / "plan.json").write_text('{"num_units": 1}')
    with pytest.raises(PlanError, match=r"plan\.json is missing or damaged"):
        read_summary(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(PlanError, match="found no plan in"):
        list(iter_plan(tmp_path))


def test_what_was_passed_over_is_in_the_summary(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", {"1.png": png(), "a.heic": "", "b.heic": ""})
    assert write_plan(open_source(root), tmp_path / "plan").ignored == {".heic": 2}


def test_duplicate_lines_of_a_manifest(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": png()})
    rows = [
        {"image": "1.png", "id": "x"},
        {"image": "1.png", "id": "y"},
        {"image": "1.png", "id": "x"},
    ]
    listing = write_lines(tmp_path / "list.jsonl", rows)
    keyed = open_source(listing, SourceOptions(key_column="id"))
    assert write_plan(keyed, tmp_path / "plan").num_errors == 1
    assert write_plan(open_source(listing), tmp_path / "plan").num_errors == 2
