"""Parquet files and saved Hugging Face datasets, by pyarrow alone and as `datasets` writes them."""

import io
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pictures import noise

from codec.console import MissingExtraError
from codec.dataset.items import SourceError, UnreadableError
from codec.dataset.options import SourceOptions
from codec.dataset.sources import open_source, read_item
from tests.codec.dataset.image_sets import errors, items, jpeg, keys, png, write_files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write_parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_rows_are_found_in_their_groups_in_any_order(tmp_path: Path) -> None:
    images = [png(number) for number in range(50)]
    columns = {"image": images, "label": list(range(50)), "text": [f"no {n}" for n in range(50)]}
    listed = items(open_source(write_parquet(tmp_path / "a.parquet", columns, row_group_size=20)))
    assert [item.key for item in listed] == [f"a.parquet#{number}" for number in range(50)]
    assert (listed[3].label, listed[3].caption) == ("3", "no 3")
    for number in [*range(50), 5, 49, 21, 20, 0]:
        assert read_item(listed[number]) == images[number]


def test_the_image_column_is_found_by_what_it_holds(tmp_path: Path) -> None:
    cells = [{"bytes": png(), "path": "1.png"}]
    write_parquet(tmp_path / "a.parquet", {"id": [b"x"], "photo": [b""], "image": cells})
    (item,) = items(open_source(tmp_path / "a.parquet"))
    assert item.locator["column"] == "image"
    options = SourceOptions(image_column="photo", key_column="id")
    with pytest.raises(SourceError, match="has no column 'picture', it has 'id', 'photo', 'image'"):
        items(open_source(tmp_path / "a.parquet", SourceOptions(image_column="picture")))
    (error,) = errors(open_source(tmp_path / "a.parquet", options))
    assert error.reason == "found the key b'x', expected a text or a number, in a.parquet#0"
    write_parquet(tmp_path / "b.parquet", {"image": [1.5], "x": ["y"]})
    with pytest.raises(SourceError, match=r"column 'image' of b\.parquet holds double: expected"):
        items(open_source(tmp_path / "b.parquet"))


def test_null_images_and_images_in_files(tmp_path: Path) -> None:
    cells = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "images/1.png"}]
    write_files(tmp_path, {"images/1.png": png(1)})
    write_parquet(tmp_path / "a.parquet", {"image": cells})
    null, empty, named = items(open_source(tmp_path / "a.parquet"))
    for item in (null, empty):
        with pytest.raises(UnreadableError, match=r"a\.parquet#\d is null: expected an image"):
            read_item(item)
    assert read_item(named) == png(1)


def test_a_column_of_paths_names_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"images/1.png": png(1)})
    columns = {"file_name": ["images/1.png", "images/2.png", None], "text": ["one", "two", "three"]}
    source = open_source(write_parquet(tmp_path / "metadata.parquet", columns))
    entries = list(source.iter_items())
    assert [entry.key for entry in entries] == [
        "images/1.png",
        "images/2.png",
        "metadata.parquet#2",
    ]
    assert entries[0].caption == "one"  # type: ignore[union-attr]
    missing, null = errors(source)
    assert "images/2.png does not exist" in missing.reason
    assert "has no path of an image" in null.reason


def test_splits_of_the_hub(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "holdout-00000-of-00001"):
        write_parquet(tmp_path / f"data/{name}.parquet", {"image": [png()]})
    with pytest.raises(SourceError, match=r"has holdout, train: name one with --split"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="found no split 'test'"):
        open_source(tmp_path, SourceOptions(split="test"))
    assert keys(open_source(tmp_path, SourceOptions(split="train"))) == [
        "data/train-00000-of-00002.parquet#0",
        "data/train-00001-of-00002.parquet#0",
    ]
    everything = SourceOptions(kind="huggingface", split="all")
    assert len(keys(open_source(tmp_path, everything))) == 3


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "b.parquet", {"image": [png()]}).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    source = open_source(tmp_path)
    assert [entry.key for entry in source.iter_items()] == ["a.parquet", "b.parquet#0", "c.parquet"]
    assert all("is not a complete Parquet file" in error.reason for error in errors(source))


def test_a_file_that_is_damaged_within_is_an_error_of_its_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [png()]}, compression="zstd")
    (item,) = items(open_source(path))
    damaged = bytearray(path.read_bytes())
    damaged[20:400] = bytes(380)
    path.write_bytes(damaged)
    with pytest.raises(UnreadableError, match=r"a\.parquet#0 cannot be read from its Parquet file"):
        read_item(item)
    path.unlink()
    with pytest.raises(UnreadableError, match=r"a\.parquet#0 does not exist"):
        read_item(item)


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(noise(16, 16, seed=number))


@pytest.fixture
def dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "caption": datasets.Value("string"),
        }
    )
    columns = {"photo": [picture(0), picture(1), picture(2)], "kind": [1, 0, -1]}
    return datasets.Dataset.from_dict(columns | {"caption": ["a", None, "c"]}, features=features)


def decoded(data: bytes) -> bytes:
    with PIL.Image.open(io.BytesIO(data)) as found:
        return found.tobytes()


def test_a_saved_dataset(tmp_path: Path, dataset: Any) -> None:
    dataset.save_to_disk(tmp_path / "set", num_shards=2)
    source = open_source(tmp_path / "set")
    listed = items(source)
    assert [item.key for item in listed] == [
        "data-00000-of-00002.arrow#0",
        "data-00000-of-00002.arrow#1",
        "data-00001-of-00002.arrow#0",
    ]
    assert [item.label for item in listed] == ["dog", "cat", None]
    assert [item.caption for item in listed] == ["a", None, "c"]
    assert source.classes == ("cat", "dog")
    for number in (2, 0, 1):
        assert decoded(read_item(listed[number])) == picture(number).tobytes()


def test_a_saved_selection_and_splits(tmp_path: Path, dataset: Any) -> None:
    import datasets

    splits = datasets.DatasetDict({"train": dataset.select([2, 0]), "test": dataset.select([1])})
    splits.save_to_disk(tmp_path / "set")
    with pytest.raises(SourceError, match="has train, test: name one with --split"):
        open_source(tmp_path / "set")
    listed = items(open_source(tmp_path / "set", SourceOptions(split="train")))
    assert [item.key for item in listed] == [
        "train/data-00000-of-00001.arrow#0",
        "train/data-00000-of-00001.arrow#1",
    ]
    assert decoded(read_item(listed[0])) == picture(2).tobytes()
    assert len(keys(open_source(tmp_path / "set", SourceOptions(split="all")))) == 3
    assert len(keys(open_source(tmp_path / "set/test"))) == 1


def test_the_same_dataset_as_parquet(tmp_path: Path, dataset: Any) -> None:
    dataset.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    source = open_source(tmp_path)
    listed = items(source)
    assert [item.label for item in listed] == ["dog", "cat", None]
    assert source.classes == ("cat", "dog")
    assert decoded(read_item(listed[1])) == picture(1).tobytes()


def test_a_broken_saved_dataset(tmp_path: Path, dataset: Any) -> None:
    folder = tmp_path / "set"
    dataset.save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    (item, *_) = items(open_source(folder))
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    (error,) = errors(open_source(folder))
    assert "is not a complete Arrow file" in error.reason
    with pytest.raises(UnreadableError, match="cannot be read from its Arrow file"):
        read_item(item)
    arrow.unlink()
    assert "does not exist" in errors(open_source(folder))[0].reason
    (folder / "state.json").write_text("{}")
    with pytest.raises(SourceError, match="names no data files"):
        open_source(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(SourceError, match=r"state\.json cannot be read"):
        open_source(folder)


def test_a_label_that_no_class_has(tmp_path: Path) -> None:
    features = '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a"]}}}}'
    table = pa.table({"image": [jpeg()], "label": [4]})
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "a.parquet")
    (error,) = errors(open_source(tmp_path / "a.parquet"))
    assert error.reason == "found the label 4, expected one below 1, in a.parquet#0"


def test_without_pyarrow_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [png()]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-codec\[dataset\]'"):
        open_source(tmp_path)
