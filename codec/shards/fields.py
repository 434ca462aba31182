"""Values out of JSON that nobody vouches for: each is checked for its kind and range.

Whatever is wrong is a `ShardError`; the callers add the file that it was found in.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from codec.shards.errors import ShardError

VERSION = 1  # of everything in a dataset that is JSON
MAX_INTEGER = 2**63 - 1

_HEX = re.compile(r"[0-9a-f]+")


def parse_object(text: bytes) -> dict[str, Any]:
    """Returns the JSON object in `text`.

    Raises:
        ShardError: It is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ShardError(f"found {text[:40]!r}, expected a JSON object; fetch the file again")
    return content


def compact(content: object) -> bytes:
    """Returns one line of JSON, without its end; ASCII, so that any file name can be in it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def readable(content: object) -> bytes:
    """Returns a file of JSON for people too."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def check_names(content: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuses fields that this version of the format does not have."""
    unknown = sorted(content.keys() - set(known))
    if unknown:
        raise ShardError(
            f"found the field {unknown[0]!r} in {what}, which version {VERSION} of the format "
            "does not have; update latent-codec"
        )


def text(content: Mapping[str, Any], name: str, *, most: int = 2**20) -> str:
    """Returns a string that is not empty."""
    value = content.get(name)
    if isinstance(value, str) and 0 < len(value) <= most:
        return value
    raise _wrong(name, value, f"a text of 1 to {most} characters")


def optional_text(content: Mapping[str, Any], name: str, *, most: int = 2**20) -> str | None:
    """Returns a string, which may be empty, or None where the field is missing or null."""
    value = content.get(name)
    if value is None or (isinstance(value, str) and len(value) <= most):
        return value
    raise _wrong(name, value, f"a text of at most {most} characters")


def integer(content: Mapping[str, Any], name: str, least: int, most: int = MAX_INTEGER) -> int:
    """Returns a whole number within bounds."""
    return as_integer(content.get(name), name, least, most)


def as_integer(value: object, name: str, least: int, most: int = MAX_INTEGER) -> int:
    """Returns a value that must be a whole number within bounds."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise _wrong(name, value, f"a whole number from {least} to {most}")


def integers(
    content: Mapping[str, Any], name: str, count: int, least: int, most: int
) -> tuple[int, ...]:
    """Returns `count` whole numbers within bounds."""
    value = content.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise _wrong(name, value, f"{count} whole numbers")
    return tuple(as_integer(one, name, least, most) for one in value)


def flag(content: Mapping[str, Any], name: str) -> bool:
    """Returns a truth value; a missing one is false."""
    value = content.get(name, False)
    if isinstance(value, bool):
        return value
    raise _wrong(name, value, "true or false")


def number(content: Mapping[str, Any], name: str) -> float:
    """Returns a finite number."""
    value = content.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    raise _wrong(name, value, "a finite number")


def optional_number(content: Mapping[str, Any], name: str) -> float | None:
    """Returns a finite number, or None where the field is missing or null."""
    return None if content.get(name) is None else number(content, name)


def digest(content: Mapping[str, Any], name: str, digits: int) -> str:
    """Returns lower-case hexadecimal digits."""
    value = content.get(name)
    if isinstance(value, str) and len(value) == digits and _HEX.fullmatch(value):
        return value
    raise _wrong(name, value, f"{digits} hexadecimal digits")


def mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object."""
    value = content.get(name)
    if isinstance(value, dict):
        return value
    raise _wrong(name, value, "an object")


def _wrong(name: str, value: object, expected: str) -> ShardError:
    return ShardError(f"found {name} = {repr(value)[:60]}, expected {expected}")
