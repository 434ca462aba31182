"""A configuration as a card shows it: without the paths of one machine."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

PLACES = ("folders", "lists", "webdataset", "datasets", "exclude")
"""Settings of the section data that hold paths."""


def portable(config: BaseModel) -> dict[str, Any]:
    """The configuration with names of folders and files in place of their paths.

    The run's output folder is left out.
    """
    recipe: dict[str, Any] = config.model_dump(mode="json", exclude={"run": {"output_dir"}})
    named: dict[str, Any] = _named(recipe)
    for key in PLACES:  # one that is a single word and not there is a path all the same
        if key in named["data"]:
            named["data"][key] = [Path(path).name for path in named["data"][key]]
    return named


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    if isinstance(value, str) and "/" in value:
        path = Path(value)
        return path.name if path.is_absolute() or path.exists() else value
    return value
