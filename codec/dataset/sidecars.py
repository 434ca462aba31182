"""Captions and labels in files beside an image: cat.jpg, cat.txt, cat.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codec.dataset.items import UnreadableError
from codec.dataset.names import readable

LABEL_NAMES = ("label", "class", "cls", "labels", "class_name")
CAPTION_NAMES = ("caption", "text", "prompt", "captions", "txt")

_MAX_BYTES = 2**20  # of a text beside an image


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of an image: its class and its caption, where there are any."""

    label: str | None = None
    caption: str | None = None


def label_text(value: Any, what: str = "label") -> str | None:
    """Returns a label or key as text; None for null, NaN and empty ones.

    A whole number is written as one also where a table has made a fraction of it (3.0), as tables
    do when some are missing.

    Raises:
        UnreadableError: It is neither text nor a number.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | bool | int | float):
        return readable(str(value))
    raise UnreadableError(f"found the {what} {value!r:.80}, expected a text or a number")


def caption_text(value: Any) -> str | None:
    """Returns a caption; several become its lines, None stands for null, NaN and empty ones.

    Raises:
        UnreadableError: It is no text and no list of texts.
    """
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return readable(value.strip()) or None
    if isinstance(value, Sequence) and all(isinstance(part, str) for part in value):
        return caption_text("\n".join(part.strip() for part in value))
    raise UnreadableError(f"found the caption {value!r:.80}, expected a text or a list of texts")


def described_by(fields: Mapping[str, Any]) -> Description:
    """Returns what a mapping of names to values says, by the usual names.

    Raises:
        UnreadableError: A value is of another type.
    """
    label = next((fields[name] for name in LABEL_NAMES if name in fields), None)
    caption = next((fields[name] for name in CAPTION_NAMES if name in fields), None)
    return Description(label_text(label), caption_text(caption))


def parse_caption(data: bytes, name: str) -> str | None:
    """Returns the caption in the bytes of a text file.

    Raises:
        UnreadableError: They are not UTF-8.
    """
    try:
        return caption_text(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"the caption {name} is not in UTF-8 ({error.reason} at byte {error.start}): save it "
            "as UTF-8"
        ) from error


def parse_json(data: bytes, name: str) -> Description:
    """Returns what the bytes of a JSON file say of an image.

    Raises:
        UnreadableError: They are no JSON object, or a value is of another type.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{name} is not JSON ({error}): mend or remove it") from error
    if not isinstance(fields, dict):
        raise UnreadableError(f"{name} holds no JSON object: expected one with a caption or label")
    try:
        return described_by(fields)
    except UnreadableError as error:
        raise UnreadableError(f"{error} in {name}") from error


def read_sidecars(
    files: Mapping[str, str], source: str, label: str | None, captions: bool = True
) -> Description:
    """Reads the .txt and .json files beside an image.

    A text file has the caption, a JSON object `caption` (or text, prompt) and `label` (or class);
    the text's caption goes before the object's, the object's label before the folder's.

    Args:
        files: Paths by lower-case ending.
        source: How messages call the image.
        label: What the folder says.
        captions: Whether they are wanted.

    Raises:
        UnreadableError: One cannot be read; the message says which.
    """
    found = Description()
    stem = source.rpartition(".")[0]
    if ".json" in files:
        found = parse_json(_read(files[".json"], f"{stem}.json"), f"{stem}.json")
    caption = found.caption
    if captions and ".txt" in files:
        caption = parse_caption(_read(files[".txt"], f"{stem}.txt"), f"{stem}.txt") or caption
    return Description(found.label or label, caption if captions else None)


def _read(path: str, name: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"{name} cannot be read ({error.strerror})") from error
    check_text_size(len(data), name)
    return data


def check_text_size(num_bytes: int, name: str) -> None:
    """Refuses a text that is longer than any caption.

    Raises:
        UnreadableError: It is.
    """
    if num_bytes > _MAX_BYTES:
        raise UnreadableError(
            f"{name} has more than {_MAX_BYTES:,} bytes: expected the caption of one image"
        )
