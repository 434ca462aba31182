"""Folder trees and lists: order, classes, captions, names in any script, links."""

import os
from pathlib import Path

import pytest

from codec.dataset.items import SourceError, entry_from_line, entry_to_line
from codec.dataset.options import SourceOptions
from codec.dataset.sorting import sort_stream
from codec.dataset.sources import open_source, read_item
from tests.codec.dataset.image_sets import errors, items, jpeg, keys, png, write_files


def test_a_tree_is_listed_in_one_order_with_its_folders_as_classes(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "a/x.JPG", "c.png", "b/deep/1.png", ".hidden/h.png", "b/.h.png"]
    source = open_source(write_files(tmp_path, dict.fromkeys(names, png())))
    listed = items(source)
    assert [item.key for item in listed] == [
        "a/x.JPG",
        "b/10.png",
        "b/2.png",
        "b/deep/1.png",
        "c.png",
    ]
    assert [item.label for item in listed] == ["a", "b", "b", "deep", None]
    assert [item.source for item in listed] == [item.key for item in listed]
    assert list(source.iter_items()) == listed
    assert read_item(listed[0]) == png()


def test_the_class_can_be_the_topmost_folder_or_none(tmp_path: Path) -> None:
    write_files(tmp_path, {"b/deep/1.png": png()})
    for which, label in (("top", "b"), ("parent", "deep"), ("none", None)):
        options = SourceOptions(folder_labels=which)  # type: ignore[arg-type]
        assert items(open_source(tmp_path, options))[0].label == label


def test_texts_beside_an_image_are_its_caption_and_label(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "a/1.png": png(),
            "a/1.txt": " a cat\non a mat \n",
            "a/2.png": png(),
            "a/2.JSON": '{"prompt": "a dog", "label": 7, "other": []}',
            "a/2.b.png": png(),  # sorts between 2 and its text
            "a/3.png": png(),
            "a/3.json": '{"caption": ["one", " two"]}',
            "a/3.txt": "\ufeff",
            "a/4.png": png(),
        },
    )
    listed = {item.key: item for item in items(open_source(tmp_path))}
    assert [(item.label, item.caption) for item in listed.values()] == [
        ("a", "a cat\non a mat"),
        ("7", "a dog"),
        ("a", None),
        ("a", "one\ntwo"),
        ("a", None),
    ]
    plain = items(open_source(tmp_path, SourceOptions(captions=False)))
    assert [item.caption for item in plain] == [None] * 5
    assert plain[1].label == "7"


def test_other_files_are_counted(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"1.png": png(), "1.txt": "a", "x.heic": "", "y.heic": "", "lonely.txt": ""}
    )
    source = open_source(tmp_path)
    keys(source)
    assert source.ignored == {".heic": 2, ".txt": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("1.txt", b"caf\xe9", "the caption 1.txt is not in UTF-8"),
        ("1.json", b"{", "1.json is not JSON"),
        ("1.json", b"[1]", "1.json holds no JSON object"),
        ("1.json", b'{"label": [1]}', "found the label [1], expected a text or a number in 1.json"),
        ("1.json", b'{"caption": 3}', "found the caption 3, expected a text or a list"),
        ("1.txt", b"a" * (2**20 + 1), "1.txt has more than 1,048,576 bytes"),
    ],
)
def test_a_text_that_cannot_be_used_is_an_error_of_its_image(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    write_files(tmp_path, {"1.png": png(), "2.png": png(), name: content})
    source = open_source(tmp_path)
    (error,) = errors(source)
    assert error.key == "1.png"
    assert said in error.reason
    assert len(list(source.iter_items())) == 2


def test_names_in_any_script_and_of_any_bytes(tmp_path: Path) -> None:
    names = ["日本語.png", "кошка.png", "e\u0301.png", "\u00e9.png", "new\nline.png", "a b'\".png"]
    write_files(tmp_path, dict.fromkeys(names, png()))
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb") as stream:
        stream.write(png(7))
    listed = {item.key: item for item in items(open_source(tmp_path))}
    assert set(listed) == {*names, "caf\\xe9.png"}
    for item in listed.values():
        item.key.encode()
        again = entry_from_line(entry_to_line(item))
        assert again == item
        assert read_item(again) == png(7 if "caf" in item.key else 0)  # type: ignore[arg-type]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_files(tmp_path, {"set/a/1.png": png(), "elsewhere/2.png": png()})
    (tmp_path / "set/a/up").symlink_to("..")
    (tmp_path / "set/b").symlink_to("../elsewhere")
    (tmp_path / "set/gone.png").symlink_to("nowhere.png")
    (tmp_path / "set/self.png").symlink_to("self.png")
    source = open_source(tmp_path / "set")
    entries = list(source.iter_items())
    assert [entry.key for entry in entries] == ["a/1.png", "b/2.png", "gone.png", "self.png"]
    missing, circle = errors(source)
    assert missing.reason == "gone.png does not exist: expected an image file there"
    assert "self.png cannot be read" in circle.reason


def test_what_only_looks_like_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"good.png": png(), "folder.png/1.png": png()})
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    assert [entry.key for entry in source.iter_items()] == [
        "folder.png/1.png",
        "good.png",
        "pipe.png",
    ]
    (error,) = errors(source)
    assert error.reason == "pipe.png is a pipe, socket or device: expected an image file"


def test_a_folder_that_cannot_be_listed_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"a/1.png": png(), "b/1.png": png()})
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("a/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    assert [entry.key for entry in source.iter_items()] == ["a/", "b/1.png"]
    assert "the folder a/ cannot be listed (Permission denied)" in errors(source)[0].reason


def test_metadata_beside_the_images_is_pointed_at(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": png(), "metadata.jsonl": "{}"})
    (note,) = open_source(tmp_path).notes
    assert "metadata.jsonl, which is not read: give that file" in note


def test_a_list_keeps_its_order_and_finds_classes_and_captions(tmp_path: Path) -> None:
    write_files(tmp_path, {"cats/1.jpg": jpeg(1), "cats/1.txt": "a cat", "2.png": png(2)})
    outside = write_files(tmp_path.parent / "outside", {"dogs/3.jpg": jpeg(3)}) / "dogs/3.jpg"
    listing = tmp_path / "list.txt"
    lines = [
        "2.png",
        "",
        f"  {tmp_path}/cats/1.jpg ",
        str(outside),
        "https://x.org/4.jpg",
        "no.png",
    ]
    listing.write_text("\ufeff" + "\r\n".join(lines))
    source = open_source(listing)
    entries = list(source.iter_items())
    keys_found = [entry.key for entry in entries]
    assert keys_found == ["2.png", "cats/1.jpg", str(outside), "https://x.org/4.jpg", "no.png"]
    first, second, third = entries[:3]
    assert (first.label, second.label, second.caption, third.label) == (  # type: ignore[union-attr]
        None,
        "cats",
        "a cat",
        "dogs",
    )
    address, missing = errors(source)
    assert "nothing is downloaded" in address.reason
    assert "no.png does not exist" in missing.reason


def test_a_list_names_files_by_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as stream:
        stream.write(png())
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    (item,) = items(open_source(tmp_path / "list.txt"))
    assert item.key == "caf\\xe9.png"
    assert read_item(item) == png()


@pytest.mark.parametrize("rows_in_memory", [1, 7, 100, 101, 1000])
def test_sorting_in_runs_is_sorting(rows_in_memory: int) -> None:
    rows = [(f"{number * 37 % 100:03}", "\udce9", number % 2) for number in range(100)]
    assert list(sort_stream(iter(rows), rows_in_memory)) == sorted(rows)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "does not exist"),
        ("https://x.org/a.tar", "nothing is downloaded"),
        ("photo.jpg", "is no source of images: expected a folder"),
        ("notes.doc", "is no source of images"),
        ("mixed", "holds images and Parquet files: say which to read with --kind folder or"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, said: str) -> None:
    write_files(
        tmp_path, {"photo.jpg": jpeg(), "notes.doc": "", "mixed/1.png": "", "mixed/1.parquet": ""}
    )
    with pytest.raises(SourceError, match=said):
        open_source(name if ":" in name else tmp_path / name)


def test_options_are_checked_and_described(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found kind='zip', expected one of auto, folder"):
        SourceOptions(kind="zip")  # type: ignore[arg-type]
    write_files(tmp_path / "cats", {"1.png": png()})
    source = open_source(tmp_path / "cats", SourceOptions(captions=False))
    assert source.describe() == {"kind": "folder", "name": "cats", "captions": False}
