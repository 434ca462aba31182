"""Images in a column of Parquet files or of a saved Hugging Face dataset.

Through the `datasets` library, which is imported only when such a source is opened, and never over
the network. It reads Parquet by way of an Arrow file of the same size, which gives random access;
that file lies in a temporary folder (`TMPDIR` moves it) and is removed when the source is closed or
the process ends.
"""

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec import images
from codec.images import Pixels
from train.samples.sources import DataError, number_classes

if TYPE_CHECKING:
    import datasets
    import pyarrow


class TableSource:
    """Rows with an image column: bytes, or a struct of bytes and path as `datasets` writes it.

    Args:
        place: Parquet files (a pattern, or a folder of them) or the folder of `save_to_disk`.
        image_column: its name.
        label_column: of class labels: a ClassLabel, whole numbers or texts; None reads none.

    Raises:
        DataError: nothing is there, it is damaged, or a column is missing or of another type.
    """

    def __init__(self, place: str, image_column: str, label_column: str | None = None) -> None:
        self.name = f"dataset {place}"
        self._place = Path(place).as_posix()
        self._column = image_column
        wanted = [image_column]
        if label_column is not None and label_column != image_column:
            wanted.append(label_column)
        if (Path(place) / "state.json").is_file():
            table = _open_saved(place, wanted)
        else:
            files = _parquet_files(place, wanted)
            cache = tempfile.mkdtemp(prefix="latent-codec-")
            weakref.finalize(self, _remove_cache, cache, os.getpid())
            table = _convert_parquet(place, files, wanted, cache)
        table = table.with_format(None)
        self._sizes, self._names = _sizes_and_names(place, image_column, table)
        self.classes, self._labels = _labels(place, label_column, table)
        self._table = _undecoded(table.select_columns([image_column]), image_column)

    def __len__(self) -> int:
        return len(self._sizes)

    def key(self, i: int) -> str:
        name = self._names[i] if self._names else None
        return f"{self._place}/{os.path.basename(name)}" if name else f"{self._place}#{i}"

    def size_bytes(self, i: int) -> int:
        return self._sizes[i]

    def label(self, i: int) -> int:
        return self._labels[i] if self._labels else -1

    def load(self, i: int) -> Pixels:
        value = self._table[i][self._column]
        path = value.get("path") if isinstance(value, dict) else None
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None and path is None:
            raise images.ImageError(f"row {i} of {self._place} is empty: expected an image")
        return images.load(path if content is None else content).pixels


def _open_saved(place: str, wanted: Sequence[str]) -> "datasets.Dataset":
    import datasets

    try:
        table = datasets.load_from_disk(place)
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise DataError(
            f"{place} is not a complete dataset ({error}): save it again with save_to_disk"
        ) from error
    _check_columns(place, table.column_names, wanted)
    return table


def _parquet_files(place: str, wanted: Sequence[str]) -> list[str]:
    """The files behind a path or pattern, their columns checked."""
    import pyarrow.parquet

    if (Path(place) / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in Path(place).glob("*/state.json"))
        raise DataError(
            f"{place} holds the splits {', '.join(splits)}: expected one dataset, so add the "
            "name of a split to the path"
        )
    pattern = f"{glob.escape(place)}/**/*.parquet" if Path(place).is_dir() else place
    files = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not files:
        raise DataError(
            f"found no dataset at {place}: expected Parquet files, a folder of them, or the folder "
            "of a dataset's save_to_disk (nothing is downloaded)"
        )
    for file in files:
        try:
            columns = pyarrow.parquet.read_schema(file).names
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is not a complete Parquet file ({error}): copy it again, or correct "
                "data.datasets"
            ) from error
        _check_columns(file, columns, wanted)
    return files


def _convert_parquet(
    place: str, files: list[str], wanted: list[str], cache: str
) -> "datasets.Dataset":
    import datasets

    try:
        return datasets.Dataset.from_parquet(files, cache_dir=cache, columns=wanted)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"the Parquet files of {place} cannot be converted to Arrow ({error.__cause__ or error}"
            f"): expected the same column types in all of them and free space in {cache}"
        ) from error


def _check_columns(place: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in found:
            raise DataError(
                f"{place} has no column {column!r}, it has {', '.join(map(repr, found))}: set "
                "data.image_column, and data.label_column where data.labels is true"
            )


def _undecoded(table: "datasets.Dataset", column: str) -> "datasets.Dataset":
    """The table with encoded images in its column."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table


def _sizes_and_names(
    place: str, column: str, table: "datasets.Dataset"
) -> tuple[list[int], list[str | None]]:
    """Sizes of the encoded images in bytes (0 where null), and file names if the column has any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values: pyarrow.ChunkedArray = table.data.column(column)
    kind, names = values.type, []
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        names = pc.struct_field(values, "path").to_pylist()
        values = pc.struct_field(values, "bytes")
    if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        raise DataError(
            f"column {column!r} of {place} holds {kind}: expected encoded images, as bytes or as a "
            "struct of bytes and path; set data.image_column"
        )
    return pc.fill_null(pc.binary_length(values), 0).to_pylist(), names


def _labels(
    place: str, column: str | None, table: "datasets.Dataset"
) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and each row's place among them; null and negative numbers are -1."""
    import datasets
    import pyarrow as pa

    if column is None:
        return (), []
    kind = table.data.column(column).type
    values: list[Any] = table.data.column(column).to_pylist()
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), [-1 if value is None else value for value in values]
    if pa.types.is_integer(kind):
        return number_classes([None if v is None or v < 0 else str(v) for v in values])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return number_classes(values)
    raise DataError(
        f"column {column!r} of {place} holds {kind}: expected whole numbers or texts as class "
        "labels; set data.label_column"
    )


def _remove_cache(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process may end earlier
        shutil.rmtree(folder, ignore_errors=True)
