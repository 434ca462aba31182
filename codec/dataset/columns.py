"""Which column of a table or manifest holds the images, labels, captions and keys."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from codec.dataset.items import SourceError
from codec.dataset.options import SourceOptions
from codec.dataset.sidecars import CAPTION_NAMES, LABEL_NAMES

PATH_NAMES = ("image", "path", "file_name", "filename", "file", "img", "image_path", "filepath")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; None for what there is not."""

    image: str
    label: str | None = None
    caption: str | None = None
    key: str | None = None

    @classmethod
    def choose(
        cls,
        names: Collection[str],
        options: SourceOptions,
        place: str,
        *,
        image_names: Collection[str] = PATH_NAMES,
        label_names: Collection[str] = (),
        all_named: bool = True,
    ) -> Self:
        """Chooses columns: those that the user names, else the usual names.

        Args:
            names: Of the columns that there are.
            options: What the user names; captions may be unwanted.
            place: What messages call the table.
            image_names: Likely names of a column of images, the likeliest first.
            label_names: Names of columns of labels that are likelier than the usual ones.
            all_named: Whether the columns that the user names, but for the images', must be there.

        Raises:
            SourceError: A column that must be there is missing, or there is none of images.
        """

        def find(given: str | None, usual: Collection[str], option: str) -> str | None:
            if given is None:
                return next((name for name in usual if name in names), None)
            if given in names:
                return given
            if not all_named and option != "image":
                return None
            raise SourceError(
                f"{place} has no column {given!r}, it has {_listed(names)}: correct "
                f"--{option}-column"
            )

        image = find(options.image_column, image_names, "image")
        if image is None:
            raise SourceError(
                f"found no column of images in {place}, which has {_listed(names)}: name one with "
                "--image-column"
            )
        label = find(options.label_column, (*label_names, *LABEL_NAMES), "label")
        caption = None
        if options.captions:
            caption = find(options.caption_column, CAPTION_NAMES, "caption")
        return cls(image, label, caption, find(options.key_column, (), "key"))


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
