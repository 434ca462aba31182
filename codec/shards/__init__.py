"""Latent datasets on disk: writer, readers, manifest, and what is done with a finished one.

`FORMAT.md` beside this file is the specification. Nothing here knows of images or of how latents
were made; `codec.dataset` is the job that makes a dataset. The names are resolved when they are
first used, since commands that only print their help come by here.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.shards.errors import ShardError
    from codec.shards.loader import LatentDataset
    from codec.shards.manifest import Manifest
    from codec.shards.writer import ShardWriter

__all__ = ["LatentDataset", "Manifest", "ShardError", "ShardWriter"]

_HOMES = {
    "LatentDataset": "codec.shards.loader",
    "Manifest": "codec.shards.manifest",
    "ShardError": "codec.shards.errors",
    "ShardWriter": "codec.shards.writer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
