"""Keys for files of any name: printable in UTF-8, whatever bytes the name has."""

import os


def readable(name: str) -> str:
    r"""Returns a name that UTF-8 can hold: undecodable bytes become `\xNN`, all else stays.

    Args:
        name: As `os.fsdecode` gives it: bytes that are not UTF-8 are lone surrogates in it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return "".join(map(_readable_character, name))
    return name


def _readable_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, see PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else character


def relative_name(path: str, root: str) -> str:
    """Returns a path with `/` between its parts, relative to `root` where it lies below it."""
    prefix = os.path.join(root, "")
    inside = path[len(prefix) :] if path.startswith(prefix) else path
    return inside.replace(os.sep, "/")
