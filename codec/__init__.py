"""Images to latents to small files, and back: what a user of latents imports.

    from codec import Codec

    codec = Codec.from_pretrained()
    data = codec.compress("photo.jpg")
    image = codec.decompress(data)

The names are resolved when they are first used: a command that only prints its help imports this
package too, and must not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.autoencoder import LatentAutoencoder
    from codec.catalog import UnknownModelError
    from codec.errors import LatentCodecError
    from codec.pipeline import Codec

__all__ = ["Codec", "LatentAutoencoder", "LatentCodecError", "UnknownModelError"]

_HOMES = {
    "Codec": "codec.pipeline",
    "LatentAutoencoder": "codec.autoencoder",
    "LatentCodecError": "codec.errors",
    "UnknownModelError": "codec.catalog",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("latent-codec")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
