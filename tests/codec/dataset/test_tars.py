"""WebDataset tars: samples, texts, and every way in which a tar can be broken."""

import gzip
import tarfile
from pathlib import Path

import pytest

from codec.dataset.items import SourceError, UnreadableError
from codec.dataset.options import SourceOptions
from codec.dataset.patterns import expand_braces
from codec.dataset.sources import open_source, read_item
from tests.codec.dataset.image_sets import errors, items, jpeg, keys, png, write_tar


def test_samples_have_classes_captions_and_their_first_image(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("x/0001.jpg", jpeg(1)),
            ("x/0001.cls", "7\n"),
            ("x/0001.txt", "a cat"),
            ("x/0002.JPG", jpeg(2)),
            ("x/0002.json", '{"label": "dog", "caption": "a dog"}'),
            ("x/0002.mask.png", png(9)),
            ("x/0002.png", png(8)),
            ("x/notes", "no sample"),
            ("x/0003.json", "{}"),
            ("x/кот.png", png(3)),
        ],
    )
    source = open_source(path)
    listed = items(source)
    assert [item.key for item in listed] == ["a.tar/x/0001", "a.tar/x/0002", "a.tar/x/кот"]
    assert [item.label for item in listed] == ["7", "dog", None]
    assert [item.caption for item in listed] == ["a cat", "a dog", None]
    assert [read_item(item) for item in listed] == [jpeg(1), jpeg(2), png(3)]
    assert source.ignored == {".json": 1}
    assert items(open_source(path, SourceOptions(captions=False)))[0].caption is None


def test_folders_patterns_and_braces_lead_to_tars(tmp_path: Path) -> None:
    for name in ("s-002.tar", "s-000.tar", "s-001.tar", "other.tar"):
        write_tar(tmp_path / name, [("1.png", png())])
    (tmp_path / "notes.md").write_text("")
    expected = ["s-000.tar/1", "s-001.tar/1", "s-002.tar/1"]
    assert keys(open_source(tmp_path)) == ["other.tar/1", *expected]
    assert keys(open_source(tmp_path / "s-*.tar")) == expected
    source = open_source(tmp_path / "s-{000..003}.tar")
    assert [entry.key for entry in source.iter_items()] == [*expected, "s-003.tar"]
    assert errors(source)[0].reason == "s-003.tar does not exist: expected an image file there"
    with pytest.raises(SourceError, match=r"found no file ending in \.tar"):
        open_source(tmp_path / "t-*.tar")


def test_braces() -> None:
    assert expand_braces("a{08..10}{x,y}") == ["a08x", "a09x", "a10x", "a08y", "a09y", "a10y"]
    assert expand_braces("a{b}c") == ["a{b}c"]


def test_a_tar_that_is_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(4)])
    with tarfile.open(path) as archive:
        last = archive.getmembers()[3]
    whole = path.read_bytes()
    for length in (last.offset_data + 10, last.offset + 100, last.offset):
        path.write_bytes(whole[:length])
        source = open_source(path)
        entries = list(source.iter_items())
        assert [entry.key for entry in entries[:3]] == ["a.tar/0", "a.tar/1", "a.tar/2"]
        (error,) = errors(source)
        assert error.key == "a.tar"
        assert "copy it again" in error.reason
        for number in range(3):
            assert read_item(entries[number]) == png(number)  # type: ignore[arg-type]
        if length > last.offset_data:
            with pytest.raises(UnreadableError, match=r"a\.tar/3 is cut off with the tar .* 10 of"):
                read_item(entries[3])  # type: ignore[arg-type]


def test_a_damaged_header_and_a_second_archive_are_seen(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number}.png", png(number)) for number in range(4)])
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[2].offset
    whole = bytearray(path.read_bytes())
    for broken in (
        bytes(whole) + bytes(whole),
        bytes(whole[:offset]) + b"\xff" + whole[offset + 1 :],
    ):
        path.write_bytes(broken)
        (error,) = errors(open_source(path))
        assert "has a damaged header at byte" in error.reason


def test_compressed_and_other_files_are_errors_and_the_other_tars_go_on(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", [("1.png", png())])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"text" * 1000)
    source = open_source(tmp_path)
    assert [entry.key for entry in source.iter_items()] == [
        "a.tar.gz",
        "b.tar",
        "c.tar",
        "good.tar/1",
    ]
    compressed, empty, text = errors(source)
    assert "a.tar.gz is compressed: expected a plain tar" in compressed.reason
    assert "is not a complete tar (empty file)" in empty.reason
    assert "is not a complete tar" in text.reason


def test_a_text_that_cannot_be_used_is_an_error_of_its_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [("1.png", png()), ("1.txt", b"\xff"), ("2.png", png()), ("2.json", "x"), ("3.png", png())],
    )
    source = open_source(path)
    assert [error.key for error in errors(source)] == ["a.tar/1", "a.tar/2"]
    assert len(list(source.iter_items())) == 3


def test_a_tar_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1))])
    (old,) = items(open_source(path))
    assert read_item(old) == png(1)
    write_tar(tmp_path / "b.tar", [("1.png", png(2))]).rename(path)
    (new,) = items(open_source(path))
    assert read_item(new) == png(2)
    assert old.stamp != new.stamp
    path.unlink()
    with pytest.raises(UnreadableError, match=r"a\.tar/1 does not exist"):
        read_item(new)


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            content = {"jpg": jpeg(number), "cls": number, "txt": f"no {number}"}
            writer.write({"__key__": f"part/{number:04}", **content})
    listed = items(open_source(tmp_path))
    assert [item.key for item in listed] == [f"a.tar/part/{number:04}" for number in range(3)]
    assert [item.label for item in listed] == ["0", "1", "2"]
    assert [item.caption for item in listed] == ["no 0", "no 1", "no 2"]
    assert [read_item(item) for item in listed] == [jpeg(number) for number in range(3)]
