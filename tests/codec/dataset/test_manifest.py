"""CSV, TSV and JSONL manifests."""

import json
from pathlib import Path

import pytest

from codec.dataset.items import SourceError
from codec.dataset.options import SourceOptions
from codec.dataset.sources import open_source, read_item
from tests.codec.dataset.image_sets import errors, items, png, write_files, write_lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_files(tmp_path, {f"images/{number}.png": png(number) for number in range(3)})


def test_a_csv_with_the_usual_names(root: Path) -> None:
    (root / "list.csv").write_text(
        'caption,path,label\n"a, ""b""\nc",images/1.png,3\n,images/0.png,\n', encoding="utf-8-sig"
    )
    first, second = items(open_source(root / "list.csv"))
    assert (first.key, first.label, first.caption) == ("images/1.png", "3", 'a, "b"\nc')
    assert (second.key, second.label, second.caption) == ("images/0.png", None, None)
    assert read_item(first) == png(1)


def test_columns_can_be_named_and_keys_given(root: Path) -> None:
    (root / "list.tsv").write_text("id\twhere\tkind\tsaid\n7\timages/1.png\tcat\tmeow\n")
    options = SourceOptions(
        image_column="where", label_column="kind", caption_column="said", key_column="id"
    )
    (item,) = items(open_source(root / "list.tsv", options))
    found = (item.key, item.source, item.label, item.caption)
    assert found == ("7", "images/1.png", "cat", "meow")


def test_jsonl_lines_may_have_different_fields(root: Path) -> None:
    listing = write_lines(
        root / "list.jsonl",
        [
            {"file_name": "images/0.png", "text": "one"},
            {"image": "images/1.png", "label": 5, "captions": ["a", "b"]},
            {"image": str(root / "images/2.png"), "label": None},
        ],
    )
    listed = items(open_source(listing))
    assert [item.key for item in listed] == ["images/0.png", "images/1.png", "images/2.png"]
    assert [item.label for item in listed] == [None, "5", None]
    assert [item.caption for item in listed] == ["one", "a\nb", None]


def test_bad_lines_are_errors_and_the_others_go_on(root: Path) -> None:
    good = json.dumps({"image": "images/0.png"})
    bad = ["{", "[1]", '{"x": 1}', '{"image": 3}', '{"image": "s3://b/1.png"}', '{"image": "no"}']
    bad.append('{"image": "images/1.png", "label": {}}')
    (root / "list.jsonl").write_text("\n".join([good, *bad, "", good]))
    source = open_source(root / "list.jsonl")
    assert len(list(source.iter_items())) == 9
    found = errors(source)
    assert [error.key for error in found[:4]] == [f"list.jsonl#{number}" for number in range(2, 6)]
    said = ["cannot be used", "no JSON object", "no column of images", "has no path of an image"]
    said += ["is an address", "no does not exist", "found the label {}"]
    for error, words in zip(found, said, strict=True):
        assert words in error.reason


def test_csv_lines_of_another_length_are_errors(root: Path) -> None:
    (root / "list.csv").write_text("path,label\nimages/0.png,1,2\nimages/0.png\n\nimages/1.png,1\n")
    source = open_source(root / "list.csv")
    assert [error.reason for error in errors(source)] == [
        "line 2 of list.csv has 3 fields, expected 2 as the first line has",
        "line 3 of list.csv has 1 fields, expected 2 as the first line has",
    ]
    assert len(list(source.iter_items())) == 3


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("a.csv", "", {}, "is empty: expected a line of column names"),
        ("a.csv", "x,y\n", {}, "found no column of images in a.csv, which has 'x', 'y'"),
        ("a.csv", "path\n", {"label_column": "kind"}, "has no column 'kind', it has 'path'"),
        ("a.jsonl", '{"path": "images/0.png"}', {"caption_column": "said"}, "has the field 'said'"),
    ],
)
def test_a_manifest_without_the_wanted_columns_is_refused(
    root: Path, name: str, text: str, options: dict[str, str], said: str
) -> None:
    (root / name).write_text(text)
    with pytest.raises(SourceError, match=said):
        list(open_source(root / name, SourceOptions(**options)).iter_items())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "label"),
    [("cat", "cat"), (3, "3"), (3.0, "3"), (0.5, "0.5"), (float("nan"), None), ("", None)],
)
def test_labels_as_tables_write_them(root: Path, value: object, label: str | None) -> None:
    row = {"image": "images/0.png", "label": value, "caption": float("nan")}
    (item,) = items(open_source(write_lines(root / "list.jsonl", [row])))
    assert (item.label, item.caption) == (label, None)


def test_a_key_column_must_have_keys(root: Path) -> None:
    (root / "list.csv").write_text("path,id\nimages/0.png,\n")
    (error,) = errors(open_source(root / "list.csv", SourceOptions(key_column="id")))
    assert "found no key in the column 'id', in line 2 of list.csv" in error.reason
