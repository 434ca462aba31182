"""What a dataset knows of each latent image, and of each source that gave none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from codec.header import MAX_SIDE
from codec.shards import fields
from codec.shards.errors import ShardError

_RECORD_FIELDS = frozenset(
    {"key", "source", "width", "height", "crop", "size", "flip", "label", "caption"}
)
_ERROR_FIELDS = frozenset({"key", "source", "reason"})


@dataclass(frozen=True, slots=True)
class RecordInfo:
    """Where the latents of one record come from.

    Attributes:
        key: Unique in the dataset: the source's key, with "@1" for further crops and "@flip" for
            mirrored copies.
        source: The source's key: a path relative to the source's root, or what stands for one.
        width: Of the upright original, in pixels.
        height: Likewise.
        crop: (left, top, right, bottom) of what was encoded, in the original's pixels.
        size: (width, height) of the encoded pixels.
        flip: Whether they were mirrored.
        label: Class.
        caption: Text.
    """

    key: str
    source: str
    width: int
    height: int
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool = False
    label: str | None = None
    caption: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, those left out that follow from others or are as always."""
        content: dict[str, Any] = {"key": self.key, "width": self.width, "height": self.height}
        if self.source != self.key:
            content["source"] = self.source
        if self.crop != (0, 0, self.width, self.height):
            content["crop"] = list(self.crop)
        if self.size != _extent(self.crop):
            content["size"] = list(self.size)
        if self.flip:
            content["flip"] = True
        if self.label is not None:
            content["label"] = self.label
        if self.caption is not None:
            content["caption"] = self.caption
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: A field is missing, unknown, or of another kind or range.
        """
        fields.check_names(content, _RECORD_FIELDS, "a record")
        key = fields.text(content, "key")
        width = fields.integer(content, "width", 1, MAX_SIDE)
        height = fields.integer(content, "height", 1, MAX_SIDE)
        crop = (0, 0, width, height)
        if "crop" in content:
            left, top, right, bottom = fields.integers(content, "crop", 4, 0, MAX_SIDE)
            crop = (left, top, right, bottom)
        if not (crop[0] < crop[2] and crop[1] < crop[3]):
            raise ShardError(f"found crop = {crop} of {key!r}, expected one that is not empty")
        size = _extent(crop)
        if "size" in content:
            size_width, size_height = fields.integers(content, "size", 2, 1, MAX_SIDE)
            size = (size_width, size_height)
        return cls(
            key=key,
            source=fields.text(content, "source") if "source" in content else key,
            width=width,
            height=height,
            crop=crop,
            size=size,
            flip=fields.flag(content, "flip"),
            label=fields.optional_text(content, "label"),
            caption=fields.optional_text(content, "caption"),
        )


@dataclass(frozen=True, slots=True)
class ItemError:
    """A source that gave no record, or a part of one.

    Attributes:
        key: What the record's key would have been.
        source: As in `RecordInfo`.
        reason: One sentence.
    """

    key: str
    source: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the fields; all of them, for this is what errors.jsonl holds."""
        return {"key": self.key, "source": self.source, "reason": self.reason}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Returns what `to_json` gave.

        Raises:
            ShardError: A field is missing, unknown or of another kind.
        """
        fields.check_names(content, _ERROR_FIELDS, "an error")
        names = ("key", "source", "reason")
        key, source, reason = (fields.text(content, name) for name in names)
        return cls(key, source, reason)


def _extent(crop: tuple[int, int, int, int]) -> tuple[int, int]:
    left, top, right, bottom = crop
    return right - left, bottom - top
