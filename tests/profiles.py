"""ICC profiles made by hand: Pillow can only create sRGB, Lab and XYZ ones."""

import struct


def icc(space: bytes, device_class: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 2 profile (ICC.1:2001-04) of the given tags."""
    text = b"text\0\0\0\0none\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78, **tags}
    tags |= {b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += name + struct.pack(">II", offset, len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    size = 128 + len(table) + len(body)
    white = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    header = struct.pack(">I4sI", size, b"\0" * 4, 0x02400000) + device_class + space + pcs
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return header.ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile_with_red_and_green_swapped() -> bytes:
    red, green = xyz(0.4361, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971)
    columns = {b"rXYZ": green, b"gXYZ": red, b"bXYZ": xyz(0.1431, 0.0606, 0.7141)}
    curves = {name: gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return icc(b"RGB ", b"mntr", b"XYZ ", columns | curves)
