"""Every kind of source gives the same images, and says what is wrong with what it cannot give."""

import gzip
import io
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from codec.images import ImageError
from train.samples.pool import ImagePool, open_sources
from train.samples.sources import DataError, FileSource, ImageSource, TarSource, number_classes
from train.samples.tables import TableSource
from train.sections import DataConfig

BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"


@pytest.fixture(scope="module", autouse=True)
def quiet_datasets() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Any]) -> Path:
    """Five images in the folders of two classes; the fourth of them is broken."""
    folder = tmp_path_factory.mktemp("clothes")
    for number in range(5):
        place = folder / ("coat" if number < 2 else "shirt") / f"image{number}.png"
        place.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels(40 + 8 * number, 48, number)).save(place)
    (folder / "shirt" / "image3.png").write_bytes(BROKEN)
    return folder


@pytest.fixture(scope="module")
def rows(clothes: Path) -> list[tuple[str, bytes, str]]:
    """Name, content and class of the images, as written into the other kinds of source."""
    return [(p.name, p.read_bytes(), p.parent.name) for p in sorted(clothes.rglob("*.png"))]


@pytest.fixture(scope="module")
def settings(
    clothes: Path, rows: list[tuple[str, bytes, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The same images as a folder, a list, a tar, Parquet files, and a saved dataset."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "list.txt").write_text("\n".join(str(p) for p in sorted(clothes.rglob("*.png"))))
    with webdataset.TarWriter(str(folder / "clothes.tar")) as writer:
        for name, content, kind in rows:
            writer.write({"__key__": name.removesuffix(".png"), "cls": kind, "png": content})
    structs = [{"bytes": content, "path": name} for name, content, _ in rows]
    kinds = [kind for *_, kind in rows]
    (folder / "shards").mkdir()
    for shard, part in enumerate((slice(0, 3), slice(3, 5))):
        columns = {"image": structs[part], "label": kinds[part], "weight": [0.5] * len(kinds[part])}
        table = pa.table(columns)
        pq.write_table(table, folder / "shards" / f"{shard}.parquet")
    names = pa.table({"picture": [content for _, content, _ in rows], "label": kinds})
    pq.write_table(names, folder / "bytes.parquet")
    numbers = [["coat", "shirt"].index(kind) for kind in kinds]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["coat", "shirt"])}
    saved = datasets.Dataset.from_dict(
        {"image": structs, "label": numbers}, features=datasets.Features(features)
    )
    saved.save_to_disk(folder / "saved")
    saved.to_parquet(folder / "features.parquet")
    return {
        "folder": {"folders": [str(clothes)]},
        "list": {"lists": [str(folder / "list.txt")]},
        "tar": {"webdataset": [str(folder / "*.tar")]},
        "parquet folder": {"datasets": [str(folder / "shards")]},
        "parquet pattern": {"datasets": [str(folder / "shards" / "*.parquet")]},
        "parquet bytes": {"datasets": [str(folder / "bytes.parquet")], "image_column": "picture"},
        "parquet features": {"datasets": [str(folder / "features.parquet")]},
        "saved dataset": {"datasets": [str(folder / "saved")]},
    }


KINDS = ("folder", "list", "tar", "parquet folder", "parquet pattern")
KINDS += ("parquet bytes", "parquet features", "saved dataset")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images_and_labels(
    kind: str, settings: dict[str, dict[str, Any]], clothes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pool = open_sources(DataConfig(**settings[kind], labels=True))
    assert len(pool) == 5
    assert pool.classes == ("coat", "shirt")
    assert [pool.label(i) for i in range(5)] == [0, 0, 1, 1, 1]
    copied = pickle.loads(pickle.dumps(pool))
    for i, path in enumerate(sorted(clothes.rglob("*.png"))):
        assert pool.size_bytes(i) == path.stat().st_size
        assert kind == "parquet bytes" or pool.key(i).endswith(f"/image{i}.png")
        if i == 3:
            with pytest.raises(ImageError, match="damaged"):
                pool.load(i)
        else:
            expected = np.asarray(PIL.Image.open(path))
            np.testing.assert_array_equal(pool.load(i), expected)
            np.testing.assert_array_equal(copied.load(i), expected)
    unlabelled = open_sources(DataConfig(**settings[kind]))
    assert unlabelled.classes == ()
    assert {unlabelled.label(i) for i in range(5)} == {-1}


def test_orientation_and_modes_are_treated_alike(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8), "L")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "turned.png").read_bytes()
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": content}]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    pool = open_sources(DataConfig(folders=(str(tmp_path),), datasets=(str(tmp_path / "saved"),)))
    assert pool.load(0).shape == (8, 4, 3)
    np.testing.assert_array_equal(pool.load(0), pool.load(1))


def test_lists_keep_their_order_and_miss_files_only_when_read(photos: Path, tmp_path: Path) -> None:
    listing = photos.parent / "some list.txt"
    listing.write_text(f"{photos.name}/image4.png\n\n  gone.png \n{photos / 'image1.png'}\n")
    pool = open_sources(DataConfig(lists=(str(listing),)))
    assert [Path(pool.key(i)).name for i in range(3)] == ["image4.png", "gone.png", "image1.png"]
    assert [pool.size_bytes(i) > 0 for i in range(3)] == [True, False, True]
    with pytest.raises(ImageError, match=r"gone\.png cannot be opened"):
        pool.load(1)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"the list .*empty\.txt is empty"):
        open_sources(DataConfig(lists=(str(tmp_path / "empty.txt"),)))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_tars_follow_the_rules_of_webdataset(
    tmp_path: Path, rows: list[tuple[str, bytes, str]]
) -> None:
    (_, first, _), (_, second, _) = rows[:2]
    members = [
        ("a.d/one.json", b"{}"),
        ("a.d/one.cls", b"3"),
        ("a.d/one.mask.png", second),
        ("a.d/one.PNG", first),
        ("a.d/README", b"no extension"),
        ("a.d/.hidden.png", second),
        ("a.d/two.cls", b"1\n"),
        ("a.d/two.png", second),
        ("b/two.png", first),
        ("b/text.cls", b"7"),
    ]
    path = write_tar(tmp_path / "rules.tar", members)
    source = TarSource(path, labels=True)
    names = [source.key(i).removeprefix(f"{path}/") for i in range(len(source))]
    assert names == ["a.d/one.PNG", "a.d/two.png", "b/two.png"]
    assert source.classes == ("0", "1", "2", "3")  # a number is its own place
    assert [source.label(i) for i in range(3)] == [3, 1, -1]
    with path.open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}])))
    assert [sample["png"] for sample in samples if "png" in sample] == [first, second, first]
    np.testing.assert_array_equal(source.load(1), PIL.Image.open(io.BytesIO(second)))


def test_tars_that_cannot_be_used(tmp_path: Path, rows: list[tuple[str, bytes, str]]) -> None:
    whole = write_tar(tmp_path / "whole.tar", [("a.png", rows[0][1]), ("b.png", rows[1][1])])
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole.read_bytes()))
    (tmp_path / "short.tar").write_bytes(whole.read_bytes()[:4000])
    write_tar(tmp_path / "texts.tar", [("a.txt", b"text")])
    for name, message in (
        ("packed.tar", r"packed\.tar is compressed: expected a plain tar"),
        ("short.tar", r"short\.tar is not a complete tar file"),
        ("texts.tar", r"found no picture in .*texts\.tar"),
        ("none*.tar", r"found no tar file for .*none\*\.tar"),
    ):
        with pytest.raises(DataError, match=message):
            open_sources(DataConfig(webdataset=(str(tmp_path / name),)))


def test_tables_that_cannot_be_used(tmp_path: Path, settings: dict[str, dict[str, Any]]) -> None:
    def refusal(place: Path | str, image: str = "image", label: str | None = None) -> str:
        with pytest.raises(DataError) as caught:
            TableSource(str(place), image, label)
        return str(caught.value)

    (shards,) = settings["parquet folder"]["datasets"]
    (saved,) = settings["saved dataset"]["datasets"]
    missing = "has no column 'img', it has 'image', 'label'"
    assert missing in refusal(shards, "img")
    assert missing in refusal(saved, "img")
    assert "has no column 'kind'" in refusal(shards, label="kind")
    assert "column 'label' of" in refusal(shards, "label")
    assert "holds string: expected encoded images" in refusal(shards, "label")
    assert "holds double: expected whole numbers or texts" in refusal(shards, label="weight")
    assert "expected whole numbers or texts" in refusal(shards, label="image")
    assert "found no dataset at" in refusal(tmp_path / "nothing")
    content = (Path(shards) / "0.parquet").read_bytes()
    (tmp_path / "short.parquet").write_bytes(content[: len(content) // 2])
    assert "is not a complete Parquet file" in refusal(tmp_path / "short.parquet")
    table = datasets.load_from_disk(saved)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "splits")
    assert "holds the splits test, train" in refusal(tmp_path / "splits")
    shutil.copytree(saved, tmp_path / "cut")
    next((tmp_path / "cut").glob("*.arrow")).write_bytes(b"")
    assert "is not a complete dataset" in refusal(tmp_path / "cut")


def test_empty_rows_and_labels_of_numbers(tmp_path: Path) -> None:
    rows = [None, {"bytes": None, "path": None}, {"bytes": None, "path": str(tmp_path / "x.png")}]
    PIL.Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind), "label": [4, None, -1]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = TableSource(str(tmp_path / "rows.parquet"), "image", "label")
    assert [source.label(i) for i in range(3)] == [4, -1, -1]
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.key(0) == f"{tmp_path}/rows.parquet#0"
    for i in range(2):
        with pytest.raises(ImageError, match=f"row {i} of .* is empty"):
            source.load(i)
    assert (source.load(2) == (255, 0, 0)).all()


def test_the_arrow_copy_of_a_parquet_file_is_removed(settings: dict[str, dict[str, Any]]) -> None:
    (place,) = settings["parquet bytes"]["datasets"]
    source = TableSource(place, "picture")
    (file,) = [Path(entry["filename"]) for entry in source._table.cache_files]
    assert file.is_file()
    del source
    assert not file.exists()


def test_configurations_without_sources_or_with_too_many(photos: Path) -> None:
    with pytest.raises(DataError, match=r"found no training images: set one of data\.folders"):
        open_sources(DataConfig())
    with pytest.raises(DataError, match=r"data\.factors beside other sources"):
        open_sources(DataConfig(factors=10, folders=(str(photos),)))
    with pytest.raises(ImageError, match="nowhere does not exist"):
        open_sources(DataConfig(folders=("nowhere",)))


def test_sources_join_and_share_classes(
    settings: dict[str, dict[str, Any]], clothes: Path, tmp_path: Path
) -> None:
    every = {name: value for kind in ("folder", "tar") for name, value in settings[kind].items()}
    pool = open_sources(DataConfig(**every, **settings["saved dataset"], labels=True))
    assert len(pool) == 15
    assert pool.classes == ("coat", "shirt")
    assert [pool.label(i) for i in range(15)] == 3 * [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(pool.load(4), pool.load(14))
    numbered = write_tar(tmp_path / "n.tar", [("x.cls", b"belt"), ("x.png", BROKEN)])
    sources: list[ImageSource] = [
        FileSource("files", [clothes / "shirt" / "image2.png"]),
        TarSource(numbered, labels=True),
    ]
    mixed = ImagePool(sources, labels=True)
    assert mixed.classes == ("belt", "shirt")
    assert [mixed.label(i) for i in range(2)] == [1, 0]
    bare = write_tar(tmp_path / "bare.tar", [("x.png", BROKEN)])
    with pytest.raises(DataError, match="found no class label in tar"):
        open_sources(DataConfig(webdataset=(str(bare),), labels=True))


def test_names_of_classes() -> None:
    assert number_classes(["10", "2", None]) == (tuple(map(str, range(11))), [10, 2, -1])
    assert number_classes(["b", "a", "b"]) == (("a", "b"), [1, 0, 1])
    assert number_classes(["03", "1"]) == (("03", "1"), [0, 1])  # names, since 03 is not 3
    assert number_classes(["999999999"]) == (("999999999",), [0])
    assert number_classes([None]) == ((), [-1])


def test_exclusion_goes_by_name_in_every_kind(
    settings: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    listing = tmp_path / "held out.txt"
    listing.write_text("image1.png\nimage4.png\nanother image.png\n")
    for kind in ("folder", "list", "tar", "parquet folder", "saved dataset"):
        pool = open_sources(DataConfig(**settings[kind], exclude=(str(listing),)))
        assert [Path(pool.key(i)).name for i in range(len(pool))] == [
            f"image{number}.png" for number in (0, 2, 3)
        ]
    folder = settings["folder"]
    listing.write_text("other.png\n")
    with pytest.raises(DataError, match=r"none of the 1 names in .*held out\.txt is in folders"):
        open_sources(DataConfig(**folder, exclude=(str(listing),)))
    listing.write_text("\n".join(f"image{number}.png" for number in range(5)))
    with pytest.raises(DataError, match="no image is left in folders"):
        open_sources(DataConfig(**folder, exclude=(str(listing),)))
    with pytest.raises(DataError, match=r"found no list of names none\.txt"):
        open_sources(DataConfig(**folder, exclude=("none.txt",)))


def test_a_fingerprint_follows_the_files_and_not_their_place(clothes: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> dict[str, Any]:
        return open_sources(DataConfig(folders=(str(folder),))).fingerprint()

    copy = shutil.copytree(clothes, tmp_path / "copy")
    first = fingerprint(copy)
    assert first["num_images"] == 5
    assert first["sources"] == [f"folders {copy}"]
    assert first["sha256"] == fingerprint(clothes)["sha256"]
    with (copy / "coat" / "image0.png").open("ab") as stream:
        stream.write(b"more")
    changed = fingerprint(copy)["sha256"]
    (copy / "coat" / "image0.png").rename(copy / "coat" / "image9.png")
    assert len({first["sha256"], changed, fingerprint(copy)["sha256"]}) == 3


def test_the_datasets_library_is_imported_only_when_needed() -> None:
    program = (
        "import sys, train.samples.pool; print({'datasets', 'pyarrow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
