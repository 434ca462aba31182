"""How a source is to be read, whatever kind it is."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from codec.dataset.items import SourceError

Kind = Literal["auto", "folder", "list", "manifest", "webdataset", "parquet", "huggingface"]
FolderLabels = Literal["parent", "top", "none"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user says about a source.

    Attributes:
        kind: What it is; "auto" looks.
        split: Of a Hugging Face dataset with several; "all" takes them all.
        image_column: Of manifests and tables; None looks for the usual names.
        label_column: Likewise.
        caption_column: Likewise.
        key_column: Names the records; without it they are named by their place.
        folder_labels: Which folder names the class of an image: the one that it lies in, or the
            topmost one below the root.
        captions: Read captions.
    """

    kind: Kind = "auto"
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    key_column: str | None = None
    folder_labels: FolderLabels = "parent"
    captions: bool = True

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("folder_labels", FolderLabels)):
            if getattr(self, name) not in get_args(known):
                raise SourceError(
                    f"found {name}={getattr(self, name)!r}, expected one of "
                    f"{', '.join(get_args(known))}"
                )

    def given(self) -> dict[str, Any]:
        """Returns what differs from the defaults, without the kind."""
        usual = asdict(SourceOptions())
        found = asdict(self).items()
        return {name: value for name, value in found if value != usual[name] and name != "kind"}

    def named_columns(self) -> tuple[str, ...]:
        """Returns the columns that the user names."""
        captions = self.caption_column if self.captions else None
        named = (self.image_column, self.label_column, captions, self.key_column)
        return tuple(name for name in named if name is not None)
